// Stripes: the product's work cut into equal pieces for all thread blocks, whatever its shape.
//
// A tile is some panels of the weight by all of k; a step is what one block multiplies between two barriers. The steps
// of all tiles stand in one line, and a stripe is one of `stripes` pieces of that line, whose lengths differ by one at
// most: a block may end one tile and begin another. Tiles that several stripes share are summed in the order of the
// stripes, by whichever block arrives last, so that a result does not depend on who that is.
#pragma once
#include "layout/slabs.h"

namespace ajour {

struct Stripes {
  int tiles, steps;  // steps of one tile
  int stripes;
  int least, longer;  // steps of a stripe; the first `longer` stripes have one more

  // `wanted` stripes, or one for each step if that is fewer; tiles * steps fits an int.
  static Stripes cut(int tiles, int steps, int wanted) {
    const int units = tiles * steps, stripes = wanted < units ? wanted : units;
    return {tiles, steps, stripes, units / stripes, units % stripes};
  }

  // Divisions take a block's first cycles, so there is none here.
  AJOUR_BOTH int begin(int stripe) const { return stripe * least + (stripe < longer ? stripe : longer); }
  // The stripe that holds a step of the line.
  AJOUR_BOTH int holder(int unit) const {
    const int in_longer = longer * (least + 1);
    return unit < in_longer ? unit / (least + 1) : longer + (unit - in_longer) / least;
  }
  AJOUR_BOTH int first_holder(int tile) const { return holder(tile * steps); }
  AJOUR_BOTH int last_holder(int tile) const { return holder(tile * steps + steps - 1); }
  // Where a stripe leaves its part of a tile: two places for each stripe, as only its first and last tile can be
  // shared.
  AJOUR_BOTH int place(int stripe, int tile) const { return 2 * stripe + (begin(stripe) < tile * steps ? 1 : 0); }
  // Whether any tile is shared.
  AJOUR_BOTH bool shared() const { return longer || least % steps; }
};

}  // namespace ajour
