// The codes of one row of gap rows in one span, as a thread of the host or of a device writes and reads them.
#pragma once
#include "layout/bitmap_tiles.h"
#include "layout/gap_rows.h"

namespace ajour {

// Deals a row's values to its lanes one after the other, `capacity` codes each.
struct GapDealer {
  int capacity;
  int lane = 0, used = 0, slot = 0;

  // The gap before the value of a slot, from code `used` of `lane` on; -1 if no lane has room for it. A gap that a byte
  // can't hold takes several codes.
  AJOUR_BOTH int gap_to(int to) {
    int gap = used ? to - slot : 1;
    if (used + 1 + gap / kGapFar > capacity) {
      ++lane;
      used = 0;
      gap = 1;
    }
    return lane < kGapLanes && capacity > 0 ? gap : -1;
  }
  AJOUR_BOTH void took(int gap, int to) {
    used += 1 + gap / kGapFar;
    slot = to;
  }
};

// Calls visit(slot, index of the canonical value) for each value of a row in a span.
template <class Visit>
AJOUR_BOTH void each_slot(const GapRows& w, const BitmapTiles& from, int row, int span, Visit&& visit) {
  const int first = span * w.width;
  from.each_of_row(row, first, first + w.columns(span),
                   [&](int64_t column, int64_t index) { visit(int(column) - first + 1, index); });
}

// The steps that a row needs in a span.
AJOUR_BOTH int gap_steps(const GapRows& w, const BitmapTiles& from, int row, int span) {
  int values = 0;
  each_slot(w, from, row, span, [&](int, int64_t) { ++values; });
  for (int steps = (values + kGapLanes * kGapValues - 1) / (kGapLanes * kGapValues);; ++steps) {
    GapDealer dealer{steps * kGapValues};
    bool fits = true;
    each_slot(w, from, row, span, [&](int slot, int64_t) {
      const int gap = fits ? dealer.gap_to(slot) : -1;
      fits = gap >= 0;
      if (fits) dealer.took(gap, slot);
    });
    if (fits) return steps;
  }
}

// Writes row `row` of a group, `in_group` of its four, with so many steps; the group's memory is zeros.
AJOUR_BOTH void pack_gap_row(const GapRows& w, const BitmapTiles& from, int row, int span, int in_group, int steps,
                             uint8_t* group) {
  GapDealer dealer{steps * kGapValues};
  each_slot(w, from, row, span, [&](int slot, int64_t index) {
    const int gap = dealer.gap_to(slot), lane = in_group * kGapLanes + dealer.lane;
    if (!dealer.used) *reinterpret_cast<uint16_t*>(group + GapRows::start_at(lane)) = uint16_t(slot - 1);
    const int last = dealer.used + gap / kGapFar;
    for (int code = dealer.used; code <= last; ++code) {
      const bool far = code < last;
      group[GapRows::gaps_at(code / kGapValues, lane) + code % kGapValues] = uint8_t(far ? kGapFar : gap % kGapFar);
    }
    const auto* values = static_cast<const uint16_t*>(from.tensors.values);
    uint8_t* value = group + GapRows::values_at(last / kGapValues, lane) + last % kGapValues * 2;
    *reinterpret_cast<uint16_t*>(value) = values[index];
    dealer.took(gap, slot);
  });
}

// Calls visit(slot, value) for each value of a row of a group, in the order of the columns.
template <class Visit>
AJOUR_BOTH void each_gap_value(const uint8_t* group, int steps, int in_group, Visit&& visit) {
  for (int lane = in_group * kGapLanes; lane < (in_group + 1) * kGapLanes; ++lane) {
    int slot = *reinterpret_cast<const uint16_t*>(group + GapRows::start_at(lane));
    bool far = false;
    for (int i = 0; i < steps * kGapValues; ++i) {
      const int step = i / kGapValues, gap = group[GapRows::gaps_at(step, lane) + i % kGapValues];
      slot += gap;
      if (gap != kGapFar && (gap || far)) {
        const uint8_t* value = group + GapRows::values_at(step, lane) + i % kGapValues * 2;
        visit(slot, *reinterpret_cast<const uint16_t*>(value));
      }
      far = gap == kGapFar;
    }
  }
}

// Gap rows as the work of threads, thing i of count() each: the host's (gap_rows.cpp) and a device's.

// The values of a row.
struct CountGapRows {
  GapRows w;
  BitmapTiles from;
  int32_t* counts;

  AJOUR_BOTH int64_t count() const { return w.n; }
  AJOUR_BOTH void operator()(int64_t i) const {
    int32_t values = 0;
    from.each_of_row(i, 0, w.k, [&](int64_t, int64_t) { ++values; });
    counts[i] = values;
  }
};

// The steps that a row of a group needs in a span.
struct MeasureGapRows {
  GapRows w;
  BitmapTiles from;
  const int32_t* order;
  int32_t* steps;

  AJOUR_BOTH int64_t count() const { return int64_t(w.spans) * w.groups() * kGapRows; }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int row = order[i % (w.groups() * kGapRows)];
    steps[i] = row < 0 ? 0 : gap_steps(w, from, row, int(i / (w.groups() * kGapRows)));
  }
};

AJOUR_BOTH int steps_of(const int32_t* index, int64_t group) {
  return (index[group + 1] - index[group] - 1) / GapRows::step_units();
}

// A row of a group in a span; the groups are zeros before.
struct PackGapRows {
  GapRows w;
  BitmapTiles from;
  const int32_t *order, *index;
  uint8_t* data;

  AJOUR_BOTH int64_t count() const { return int64_t(w.spans) * w.groups() * kGapRows; }
  AJOUR_BOTH void operator()(int64_t i) const {
    const int64_t group = i / kGapRows;
    const int row = order[i % (w.groups() * kGapRows)];
    if (row < 0) return;
    pack_gap_row(w, from, row, int(group / w.groups()), int(i % kGapRows), steps_of(index, group),
                 data + int64_t(index[group]) * kGapUnit);
  }
};

// Calls visit(row, column, value) for each value of row i of the order.
template <class Visit>
AJOUR_BOTH void each_ordered_value(const GapRows& w, const uint8_t* data, const int32_t* order, const int32_t* index,
                                   int64_t i, Visit&& visit) {
  for (int span = 0; order[i] >= 0 && span < w.spans; ++span) {
    const int64_t group = span * int64_t(w.groups()) + i / kGapRows;
    each_gap_value(data + int64_t(index[group]) * kGapUnit, steps_of(index, group), int(i % kGapRows),
                   [&](int slot, uint16_t value) { visit(order[i], span * w.width + slot - 1, value); });
  }
}

// Sets a row's bits, a byte of each tile; the tiles are zeros before.
struct FindGapRows {
  GapRows w;
  const uint8_t* data;
  const int32_t *order, *index;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return int64_t(w.groups()) * kGapRows; }
  AJOUR_BOTH void operator()(int64_t i) const {
    each_ordered_value(w, data, order, index, i, [&](int row, int column, uint16_t) {
      uint64_t* tile = to.tensors.bitmaps + row / TILE * to.cols() + column / TILE;
      reinterpret_cast<uint8_t*>(tile)[row % TILE] |= uint8_t(1 << column % TILE);
    });
  }
};

// Writes a row's values where bits and offsets are known.
struct UnpackGapRows {
  GapRows w;
  const uint8_t* data;
  const int32_t *order, *index;
  BitmapTiles to;

  AJOUR_BOTH int64_t count() const { return int64_t(w.groups()) * kGapRows; }
  AJOUR_BOTH void operator()(int64_t i) const {
    each_ordered_value(w, data, order, index, i, [&](int row, int column, uint16_t value) {
      const int bit = row % TILE * TILE + column % TILE;
      const uint64_t below = to.at(row / TILE, column / TILE) & ((uint64_t(1) << bit) - 1);
      static_cast<uint16_t*>(to.tensors.values)[to.begin(row / TILE, column / TILE) + count_bits(below)] = value;
    });
  }
};

}  // namespace ajour
