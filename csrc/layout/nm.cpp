#include "layout/nm.h"

#include <algorithm>
#include <string>
#include <vector>

#include "layout/zeros.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int64_t GRAIN = 1 << 16;  // elements of a weight that are worth a thread

class PositionWriter {
 public:
  explicit PositionWriter(uint8_t* bytes) : bytes_(bytes) {}
  void put(uint32_t position, int bits) {
    pending_ |= uint64_t(position) << held_;
    for (held_ += bits; held_ >= 8; held_ -= 8, pending_ >>= 8) *bytes_++ = uint8_t(pending_);
  }
  void finish() {
    if (held_) *bytes_ = uint8_t(pending_);
  }

 private:
  uint8_t* bytes_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

class PositionReader {
 public:
  explicit PositionReader(const uint8_t* bytes) : bytes_(bytes) {}
  uint32_t get(int bits) {
    for (; held_ < bits; held_ += 8) pending_ |= uint32_t(*bytes_++) << held_;
    const uint32_t position = pending_ & ((1u << bits) - 1);
    pending_ >>= bits;
    held_ -= bits;
    return position;
  }
  uint32_t rest() const { return pending_; }

 private:
  const uint8_t* bytes_;
  uint32_t pending_ = 0;
  int held_ = 0;
};

// Returns the first group with too many non-zeros, or -1.
template <class Word>
int64_t pack_row(const NMLayout& layout, const Word* row, int64_t k, const uint64_t* mask, Word* values,
                 uint8_t* bytes) {
  const int bits = layout.position_bits();
  PositionWriter positions(bytes);
  for (int64_t begin = 0; begin < k; begin += layout.group) {
    const int inside = int(std::min<int64_t>(layout.group, k - begin));
    uint64_t kept = bits_at(mask, begin, inside);
    int free = layout.keep - count_bits(kept);
    if (free < 0) return begin / layout.group;
    for (; free > 0; --free) kept |= kept + 1;  // the lowest position not yet kept
    for (int i = 0; i < layout.keep; ++i, kept &= kept - 1) {
      const int position = __builtin_ctzll(kept);
      *values++ = position < inside ? plus_zero(row[begin + position]) : Word(0);
      positions.put(position, bits);
    }
  }
  positions.finish();
  return -1;
}

std::string place_of(const NMLayout& layout, int64_t row, int64_t group, int64_t k) {
  return "row " + std::to_string(row) + ", columns " + std::to_string(group * layout.group) + " to " +
         std::to_string(std::min(k, (group + 1) * layout.group) - 1);
}

template <class Word>
[[noreturn]] void refuse_group(const NMLayout& layout, const WeightView& w, int64_t row, int64_t group) {
  int found = 0;
  for (int64_t j = group * layout.group; j < std::min(w.k, (group + 1) * layout.group); ++j) {
    found += !is_zero(w.row<Word>(row)[j]);
  }
  refuse<PatternError>(place_of(layout, row, group, w.k), ": ", layout.keep, ":", layout.group, " allows ", layout.keep,
                       " non-zeros, found ", found);
}

enum class Fault { none, code, trailing, padding };

// Checks one row; `group` becomes the faulty one.
template <class Word>
Fault check_row(const NMLayout& layout, const Word* values, const uint8_t* bytes, int64_t k, int64_t& group) {
  const int bits = layout.position_bits();
  PositionReader positions(bytes);
  for (group = 0; group < layout.groups(k); ++group) {
    int64_t last = -1;
    for (int i = 0; i < layout.keep; ++i) {
      const int64_t position = positions.get(bits);
      if (position <= last || position >= layout.group) return Fault::code;
      if (group * layout.group + position >= k && !is_zero(values[group * layout.keep + i])) return Fault::padding;
      last = position;
    }
  }
  return positions.rest() ? Fault::trailing : Fault::none;
}

std::string positions_of(const NMLayout& layout, const uint8_t* bytes, int64_t group) {
  PositionReader positions(bytes);
  for (int64_t e = 0; e < group * layout.keep; ++e) positions.get(layout.position_bits());
  std::string list;
  for (int i = 0; i < layout.keep; ++i) {
    list += (i ? ", " : "[") + std::to_string(positions.get(layout.position_bits()));
  }
  return list + "]";
}

}  // namespace

void pack_nm(const NMLayout& layout, const WeightView& w, void* values, uint8_t* positions) {
  FirstPlace refused;  // row * groups + group
  const int64_t kept = layout.kept(w.k), width = layout.position_bytes(w.k), groups = layout.groups(w.k);
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, w.n, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, w.k)), [&](int64_t first, int64_t last) {
      std::vector<uint64_t> mask(mask_words(w.k));
      for (int64_t i = first; i < last; ++i) {
        mask_row(w.row<Word>(i), w.k, mask.data());
        const int64_t group = pack_row(layout, w.row<Word>(i), w.k, mask.data(), static_cast<Word*>(values) + i * kept,
                                       positions + i * width);
        if (group >= 0) return refused.report(i * groups + group);
      }
    });
    if (refused.found()) refuse_group<Word>(layout, w, refused.place() / groups, refused.place() % groups);
  });
}

void unpack_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w) {
  const int64_t kept = layout.kept(w.k), width = layout.position_bytes(w.k), groups = layout.groups(w.k);
  const int bits = layout.position_bits();
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, w.n, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, w.k)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        Word* row = w.row<Word>(i);
        std::fill(row, row + w.k, Word(0));
        PositionReader reader(positions + i * width);
        const Word* value = static_cast<const Word*>(values) + i * kept;
        for (int64_t group = 0; group < groups; ++group) {
          for (int e = 0; e < layout.keep; ++e, ++value) {
            const int64_t j = group * layout.group + reader.get(bits);
            if (j < w.k) row[j] = plus_zero(*value);
          }
        }
      }
    });
  });
}

void check_nm(const NMLayout& layout, const void* values, const uint8_t* positions, const WeightView& w) {
  const int64_t kept = layout.kept(w.k), width = layout.position_bytes(w.k);
  FirstPlace faulty;
  by_word(w.itemsize, [&](auto zero) {
    using Word = decltype(zero);
    const Word* first_value = static_cast<const Word*>(values);
    parallel_for(0, w.n, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, w.k)), [&](int64_t first, int64_t last) {
      int64_t group;
      for (int64_t i = first; i < last; ++i) {
        if (check_row(layout, first_value + i * kept, positions + i * width, w.k, group) != Fault::none) {
          return faulty.report(i);
        }
      }
    });
    if (!faulty.found()) return;
    const int64_t i = faulty.place();
    int64_t group;
    switch (check_row(layout, first_value + i * kept, positions + i * width, w.k, group)) {
      case Fault::padding:
        refuse<FormatError>("values: row ", i, ", group ", group, " holds a non-zero beyond column ", w.k - 1);
      case Fault::trailing:
        refuse<FormatError>("positions: row ", i, " has bits set after its last position");
      default:
        refuse<FormatError>("positions: row ", i, ", group ", group, " holds ",
                            positions_of(layout, positions + i * width, group), ", no legal ", layout.keep, ":",
                            layout.group, " code");
    }
  });
}

}  // namespace ajour
