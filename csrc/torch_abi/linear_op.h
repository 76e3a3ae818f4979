// The linear ops on CPU tensors without Python: 2.3 µs less a call (Zen 5).
//
// An op that is compiled takes what it can as it is, and returns None for the rest: a table (terms/row_table.py) that
// it was not told, rows that no function of the compiled part serves, arguments that are refused or need more than a
// look. The op of the same name without `_compiled`, in Python, then takes the call; nothing goes back to it from here,
// as torch's C ABI would lose its errors, and the tensors of a list that someone else holds.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/linear_call.h"

namespace ajour::torch_abi {

struct LinearEntry {
  int64_t limit;         // the most rows that it serves
  int64_t start, count;  // its tensors in `packed`
  cpu::RunLinear run;    // or empty: not for the compiled part
};

struct LinearTable {
  int64_t n, k;
  int type;                          // of x, bias, residual and y: 0 float32, 1 bfloat16, 2 float16
  int64_t needs;                     // tensors in `packed`
  std::vector<LinearEntry> entries;  // in rising order of limits; the last one serves any number of rows
};

// Implements `ajour::<op>_compiled`, which must be defined, for CPU tensors. `activations`: names, in the order of
// their codes. Throws std::runtime_error if torch refuses.
void implement_linear(const std::string& op, const std::vector<std::string>& activations);

// Tells the op what `text`, its argument `kernels`, means; it lasts as long as the process.
void add_table(const std::string& op, const std::string& text, LinearTable table);

// Declines every call: for tests that put a kernel of their own into an op's table.
void bypass(bool on);

// Fills every y with NaN before a kernel writes to it: for tests.
void poison(bool on);

}  // namespace ajour::torch_abi
