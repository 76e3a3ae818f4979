// The linear ops as torch's dispatcher calls them for CPU tensors, without Python: 2.4 µs less a call (Zen 5).
//
// An op's row tables (terms/row_table.py) are told to it once, by the Python implementation that it falls back to: for
// a table that it does not know, for rows that a kernel without a function of its own serves, and for arguments that
// are refused or need more care than a look.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/linear_call.h"

namespace ajour::torch_abi {

struct LinearEntry {
  int64_t limit;         // the most rows that it serves
  int64_t start, count;  // its tensors in `packed`
  cpu::RunLinear run;    // or empty: the fallback does it
};

struct LinearTable {
  int64_t n, k;
  int type;                          // of x, bias, residual and y: 0 float32, 1 bfloat16, 2 float16
  int64_t needs;                     // tensors in `packed`
  std::vector<LinearEntry> entries;  // in rising order of limits; the last one serves any number of rows
};

// Implements `ajour::op`, which must be defined, for CPU tensors; `ajour::op_python` has the same schema and takes any
// call. `activations`: names, in the order of their codes. Throws std::runtime_error if torch refuses.
void implement_linear(const std::string& op, const std::vector<std::string>& activations);

// Tells the op what `text`, its argument `kernels`, means; it lasts as long as the process.
void add_table(const std::string& op, const std::string& text, LinearTable table);

// The text of an error that a fallback raises in this thread: torch's C ABI does not carry it.
void set_raised(std::string text);

// Sends every call to the fallback: for tests that put a kernel of their own into an op's table.
void bypass(bool on);

// Fills every y with NaN before a kernel writes to it: for tests.
void poison(bool on);

}  // namespace ajour::torch_abi
