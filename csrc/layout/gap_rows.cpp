#include "layout/gap_rows.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "memory/check.h"
#include "memory/parallel.h"

namespace ajour {
namespace {

constexpr int kWidest = 8192;     // columns of a span: four rows of x take 64 KiB of shared memory
constexpr int kNarrowest = 1024;  // narrower spans are not worth their parts
constexpr int kWorthRows = 4096;  // rows by spans that give every multiprocessor of a large card eight warps
constexpr int kReserved = 1024;   // bytes of shared memory that the system takes for each block

struct Entry {
  int slot;
  uint16_t value;
};

// The values of one row in one span.
void read_entries(const GapRows& w, const BitmapRows& rows, int row, int span, std::vector<Entry>& found) {
  found.clear();
  const uint64_t* words = rows.bits + row * row_words(w.k);
  const uint16_t* value = static_cast<const uint16_t*>(rows.values) + rows.starts[row];
  const int begin = span * w.width, end = begin + w.columns(span);
  for (int64_t j = 0; j < begin / 64; ++j) value += __builtin_popcountll(words[j]);
  for (int64_t j = begin / 64; j * 64 < end; ++j) {
    for (uint64_t word = words[j]; word; word &= word - 1) {
      const int column = int(j * 64) + __builtin_ctzll(word);
      if (column >= begin && column < end) found.push_back({column - begin + 1, *value});
      ++value;
    }
  }
}

// Deals a row's entries to its lanes, `capacity` codes each; false if they don't fit. Calls visit(lane, entry, gap),
// where a gap that a byte can't hold takes several codes.
template <class Visit>
bool deal(const std::vector<Entry>& entries, int capacity, const Visit& visit) {
  int lane = 0, used = 0, slot = 0;
  for (const Entry& entry : entries) {
    int gap = used ? entry.slot - slot : 1;
    if (used + 1 + gap / kGapFar > capacity) {
      ++lane;
      used = 0;
      gap = 1;
    }
    if (lane >= kGapLanes || capacity < 1) return false;
    visit(lane, entry, gap);
    used += 1 + gap / kGapFar;
    slot = entry.slot;
  }
  return true;
}

int steps_for(const std::vector<Entry>& entries) {
  int steps = int(ceil_div(int64_t(entries.size()), kGapLanes * kGapValues));
  while (!deal(entries, steps * kGapValues, [](int, const Entry&, int) {})) ++steps;
  return steps;
}

// Calls visit(group) for each group, on torch's threads.
template <class Visit>
void each_group(const GapRows& w, const Visit& visit) {
  parallel_for(0, w.groups(), 8, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) visit(int(group));
  });
}

int steps_of(const int32_t* index, int64_t i) { return (index[i + 1] - index[i] - 1) / GapRows::step_units(); }

template <class Word>
Word word_at(const uint8_t* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

void pack_row(const std::vector<Entry>& entries, int row, int steps, uint8_t* group) {
  int codes[kGapLanes] = {};
  const auto put = [&](int lane, int gap, uint16_t value) {
    const int in_warp = row * kGapLanes + lane, step = codes[lane] / kGapValues, place = codes[lane] % kGapValues;
    std::memcpy(group + GapRows::values_at(step, in_warp) + place * 2, &value, 2);
    group[GapRows::gaps_at(step, in_warp) + place] = uint8_t(gap);
    ++codes[lane];
  };
  deal(entries, steps * kGapValues, [&](int lane, const Entry& entry, int gap) {
    if (!codes[lane]) {
      const uint16_t start = uint16_t(entry.slot - 1);
      std::memcpy(group + GapRows::start_at(row * kGapLanes + lane), &start, 2);
    }
    for (; gap >= kGapFar; gap -= kGapFar) put(lane, kGapFar, 0);
    put(lane, gap, entry.value);
  });
}

// Calls visit(slot, value) for each value of a row of a group, in the order of the columns.
template <class Visit>
void each_value(const uint8_t* group, int steps, int row, const Visit& visit) {
  for (int lane = row * kGapLanes; lane < (row + 1) * kGapLanes; ++lane) {
    int slot = word_at<uint16_t>(group + GapRows::start_at(lane));
    bool far = false;
    for (int i = 0; i < steps * kGapValues; ++i) {
      const int step = i / kGapValues, gap = group[GapRows::gaps_at(step, lane) + i % kGapValues];
      slot += gap;
      if (gap != kGapFar && (gap || far)) {
        visit(slot, word_at<uint16_t>(group + GapRows::values_at(step, lane) + i % kGapValues * 2));
      }
      far = gap == kGapFar;
    }
  }
}

}  // namespace

GapRows gap_rows(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > INT32_MAX / 64 || k > INT32_MAX / 64) {
    refuse<KernelError>("gap rows take sides of 1 to ", INT32_MAX / 64, ", found ", n, "x", k);
  }
  const int64_t wanted = std::min(ceil_div(k, kNarrowest), ceil_div(kWorthRows, n));
  const int64_t spans = std::max(ceil_div(k, kWidest), wanted), width = ceil_div(ceil_div(k, spans), 8) * 8;
  return {int(n), int(k), int(ceil_div(k, width)), int(width)};
}

void index_gap_rows(const GapRows& w, const BitmapRows& rows, int32_t* order, int32_t* index) {
  const auto count = [&](int32_t row) { return rows.starts[row + 1] - rows.starts[row]; };
  std::iota(order, order + w.n, 0);
  std::stable_sort(order, order + w.n, [&](int32_t a, int32_t b) { return count(a) > count(b); });
  std::fill(order + w.n, order + w.groups() * kGapRows, -1);
  each_group(w, [&](int group) {
    std::vector<Entry> entries;
    for (int span = 0; span < w.spans; ++span) {
      int steps = 0;
      for (int row = 0; row < kGapRows && order[group * kGapRows + row] >= 0; ++row) {
        read_entries(w, rows, order[group * kGapRows + row], span, entries);
        steps = std::max(steps, steps_for(entries));
      }
      index[span * int64_t(w.groups()) + group + 1] = 1 + steps * GapRows::step_units();
    }
  });
  index[0] = 0;
  int64_t end = 0;
  for (int64_t i = 1; i <= int64_t(w.spans) * w.groups(); ++i) {
    end += index[i];
    if (end > INT32_MAX) refuse<KernelError>("gap rows have at most 128 GiB, found more than ", end, " times 64 bytes");
    index[i] = int32_t(end);
  }
}

void pack_gap_rows(const GapRows& w, const BitmapRows& rows, const int32_t* order, const int32_t* index,
                   uint8_t* data) {
  each_group(w, [&](int group) {
    std::vector<Entry> entries;
    for (int span = 0; span < w.spans; ++span) {
      const int64_t i = span * int64_t(w.groups()) + group;
      uint8_t* out = data + int64_t(index[i]) * kGapUnit;
      std::memset(out, 0, size_t(index[i + 1] - index[i]) * kGapUnit);
      for (int row = 0; row < kGapRows && order[group * kGapRows + row] >= 0; ++row) {
        read_entries(w, rows, order[group * kGapRows + row], span, entries);
        pack_row(entries, row, steps_of(index, i), out);
      }
    }
  });
}

int64_t count_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* index) {
  int64_t count = 0;
  for (int64_t i = 0; i < int64_t(w.spans) * w.groups(); ++i) {
    for (int row = 0; row < kGapRows; ++row) {
      each_value(data + int64_t(index[i]) * kGapUnit, steps_of(index, i), row, [&](int, uint16_t) { ++count; });
    }
  }
  return count;
}

void unpack_gap_rows(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                     const BitmapRows& rows) {
  const auto each = [&](int group, const auto& visit) {  // visit(row, column, value)
    for (int r = 0; r < kGapRows && order[group * kGapRows + r] >= 0; ++r) {
      const int row = order[group * kGapRows + r];
      for (int span = 0; span < w.spans; ++span) {
        const int64_t i = span * int64_t(w.groups()) + group;
        each_value(data + int64_t(index[i]) * kGapUnit, steps_of(index, i), r,
                   [&](int slot, uint16_t value) { visit(row, span * w.width + slot - 1, value); });
      }
    }
  };
  std::fill(rows.bits, rows.bits + int64_t(w.n) * row_words(w.k), 0);
  std::fill(rows.starts, rows.starts + w.n + 1, 0);
  each_group(w, [&](int group) {
    each(group, [&](int row, int column, uint16_t) {
      rows.bits[row * row_words(w.k) + column / 64] |= uint64_t(1) << column % 64;
      ++rows.starts[row + 1];
    });
  });
  for (int row = 0; row < w.n; ++row) rows.starts[row + 1] += rows.starts[row];
  uint16_t* values = static_cast<uint16_t*>(rows.values);
  each_group(w, [&](int group) {
    int known = -1;
    int64_t next = 0;
    each(group, [&](int row, int, uint16_t value) {
      if (row != known) next = rows.starts[row];
      known = row;
      values[next++] = value;
    });
  });
  std::fill(values + rows.starts[w.n], values + rows.starts[w.n] + kValueTail, uint16_t(0));
}

GapShape gap_shape(int64_t m, const GapRows& w, const DeviceLimits& device, int blocks) {
  if (m < 1 || m > kGapMaxRows) refuse<KernelError>("gap rows serve 1 to ", kGapMaxRows, " rows of x, found ", m);
  if (blocks < 1) refuse<KernelError>("gap rows need a block at least, found c", blocks);
  GapShape shape{};
  shape.tokens = m <= 2 ? int(m) : 4;
  shape.shared_bytes = ceil_div(int64_t(w.width + 1) * shape.slot_bytes(), 128) * 128;
  if (shape.shared_bytes > device.block_shared) {
    refuse<KernelError>("gap rows need ", shape.shared_bytes, " bytes of shared memory for a span of ", w.width,
                        " columns, this device has ", device.block_shared);
  }
  const int64_t fit = std::max<int64_t>(1, device.processor_shared / (shape.shared_bytes + kReserved));
  const int64_t at_once = device.processors * std::min<int64_t>(blocks, fit) / w.spans;
  shape.blocks = int(std::max<int64_t>(1, std::min(at_once, ceil_div(w.groups(), kGapWarps))));
  if (w.spans > 1) shape.scratch_bytes = int64_t(w.spans) * w.groups() * kGapRows * shape.tokens * 4;
  return shape;
}

}  // namespace ajour
