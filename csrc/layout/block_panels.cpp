#include "layout/block_panels.h"

#include <algorithm>

#include "memory/parallel.h"

namespace ajour {
namespace {

// What a row costs in panels of that many rows, against panels of 32: fewer rows share each load of x (Zen 5).
struct Size {
  int rows;
  double cost;
};
constexpr Size kSizes[] = {{32, 1.0}, {16, 1.05}, {8, 1.1}, {4, 1.35}, {2, 2.0}, {1, 3.0}};

int best_panel_rows(int rows) {
  int best = 0;
  double least = 0;
  for (const Size& size : kSizes) {
    const double cost = (rows + size.rows - 1) / size.rows * size.rows * size.cost;
    if (!best || cost < least) best = size.rows, least = cost;
  }
  return best;
}

// Where column `column` of row 0 of a panel stands, in values from the panel's start; row r follows at r * row_step.
struct Place {
  explicit Place(const BlockPanels& p) : paired(p.paired), row_step(p.paired ? 2 : 1), panel_rows(p.panel_rows) {}
  int64_t at(int64_t column) const { return paired ? column / 2 * 2 * panel_rows + column % 2 : column * panel_rows; }
  bool paired;
  int row_step, panel_rows;
};

// Calls visit(block word, panel word) for every element inside the weight, in an order that writes panels in sequence.
template <class Block, class Panel, class Visit>
void walk_row(const BlockPanels& p, const int32_t* columns, int64_t block_row, Block* blocks, Panel* values,
              const Visit& visit) {
  const Place place(p);
  const int64_t first = p.offsets[block_row], count = p.offsets[block_row + 1] - first;
  for (int panel = 0; panel < p.panels; ++panel) {
    Panel* to = values + p.values_before(block_row, panel);
    const int rows = std::min(p.panel_rows, p.rows - panel * p.panel_rows);
    for (int64_t b = 0; b < count; ++b) {
      Block* block = blocks + ((first + b) * p.rows + panel * p.panel_rows) * p.cols;
      const int cols = int(std::min<int64_t>(p.cols, p.k - int64_t(columns[first + b]) * p.cols));
      for (int column = 0; column < cols; ++column) {
        Panel* at = to + place.at(b * p.cols + column);
        for (int row = 0; row < rows; ++row) visit(block[row * p.cols + column], at[row * place.row_step]);
      }
    }
  }
}

int64_t grain(const BlockPanels& p) {  // block rows that are worth a thread
  const int64_t rows = std::max<int64_t>(1, p.block_rows()), size = std::max<int64_t>(1, p.values() / rows);
  return std::max<int64_t>(1, (1 << 16) / size);
}

}  // namespace

BlockPanels block_panels(const BlockLayout& block, int64_t n, int64_t k, int64_t live, int itemsize) {
  BlockPanels p{};
  p.n = n, p.k = k, p.live = live;
  p.rows = block.rows, p.cols = block.cols;
  p.panel_rows = best_panel_rows(block.rows);
  p.panels = (block.rows + p.panel_rows - 1) / p.panel_rows;
  p.paired = itemsize == 2;
  p.loose = p.paired && block.cols % 2 == 1;
  p.unit = p.loose ? 1 : block.cols;
  return p;
}

int64_t block_panels_values(const BlockLayout& block, int64_t n, int64_t live, int itemsize) {
  BlockPanels p = block_panels(block, n, 0, live, itemsize);
  const int64_t count = live * p.cols, room = p.loose ? (count + p.block_rows() + 1) / 2 * 2 : count;
  return room * p.panels * p.panel_rows;
}

int64_t block_panels_index_size(const BlockPanels& p) {
  return kBlockPanelsHeader + p.block_rows() + 1 + p.live * p.cols / p.unit;
}

BlockPanels read_block_panels(const int32_t* index, int itemsize) {
  BlockPanels p = block_panels(BlockLayout{index[2], index[3]}, index[0], index[1], index[4], itemsize);
  p.offsets = index + kBlockPanelsHeader;
  p.starts = p.offsets + p.block_rows() + 1;
  return p;
}

void pack_block_panels(const BlockPanels& layout, const BlockTensors& t, int itemsize, void* values, int32_t* index) {
  const int64_t block_rows = layout.block_rows();
  const int32_t header[kBlockPanelsHeader] = {int32_t(layout.n), int32_t(layout.k), layout.rows, layout.cols,
                                              int32_t(layout.live)};
  std::copy(header, header + kBlockPanelsHeader, index);
  std::copy(t.row_offsets, t.row_offsets + block_rows + 1, index + kBlockPanelsHeader);
  int32_t* starts = index + kBlockPanelsHeader + block_rows + 1;
  for (int64_t i = 0; i < t.live; ++i) {
    for (int j = 0; j < layout.cols; j += layout.unit) {
      *starts++ = int32_t(std::min<int64_t>(int64_t(t.columns[i]) * layout.cols + j, layout.k));
    }
  }
  const BlockPanels p = read_block_panels(index, itemsize);
  by_word(itemsize, [&](auto zero) {
    using Word = decltype(zero);
    parallel_for(0, block_rows, grain(p), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        Word* begin = static_cast<Word*>(values) + p.columns_before(row) * p.panels * p.panel_rows;
        std::fill(begin, static_cast<Word*>(values) + p.columns_before(row + 1) * p.panels * p.panel_rows, Word(0));
        walk_row(p, t.columns, row, static_cast<const Word*>(t.blocks), static_cast<Word*>(values),
                 [](const Word& from, Word& to) { to = from; });
      }
    });
  });
}

void unpack_block_panels(const BlockPanels& p, const void* values, int itemsize, const BlockTensors& t) {
  const int64_t per_block = p.cols / p.unit;
  std::copy(p.offsets, p.offsets + p.block_rows() + 1, t.row_offsets);
  for (int64_t i = 0; i < p.live; ++i) t.columns[i] = p.starts[i * per_block] / p.cols;
  by_word(itemsize, [&](auto zero) {
    using Word = decltype(zero);
    std::fill_n(static_cast<Word*>(t.blocks), p.live * p.rows * p.cols, Word(0));
    parallel_for(0, p.block_rows(), grain(p), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        walk_row(p, t.columns, row, static_cast<Word*>(t.blocks), static_cast<const Word*>(values),
                 [](Word& to, const Word& from) { to = from; });
      }
    });
  });
}

}  // namespace ajour
