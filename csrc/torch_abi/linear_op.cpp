#include "torch_abi/linear_op.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "torch_abi/functions.h"

namespace ajour::torch_abi {
namespace {

constexpr int kMostOps = 8, kMostTensors = 8, kMostDims = 16;
enum Argument { kX, kPacked, kBias, kKernels, kActivation, kResidual };

// Tables by their text: only ever added to, so that a call looks one up without a lock, which a fork could leave held.
class Tables {
 public:
  const LinearTable* find(std::string_view text) const {
    const Node* node = heads_[bucket(text)].load(std::memory_order_acquire);
    while (node && node->text != text) node = node->next;
    return node ? &node->table : nullptr;
  }
  void add(const std::string& text, LinearTable table) {
    std::atomic<const Node*>& head = heads_[bucket(text)];
    Node* const node = new Node{text, std::move(table), head.load(std::memory_order_relaxed)};
    while (!head.compare_exchange_weak(node->next, node, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }

 private:
  struct Node {
    std::string text;
    LinearTable table;
    const Node* next;
  };
  static constexpr size_t kBuckets = 1024;
  static size_t bucket(std::string_view text) { return std::hash<std::string_view>{}(text) % kBuckets; }
  std::array<std::atomic<const Node*>, kBuckets> heads_{};
};

struct LinearOp {
  std::string name;
  std::vector<std::string> activations;
  Tables tables;
};

std::array<LinearOp, kMostOps> ops;
int op_count = 0;
std::atomic<bool> poisoned{false}, bypassed{false};

// A tensor that someone else holds.
struct Borrowed {
  explicit Borrowed(StableIValue value) : handle(reinterpret_cast<Handle>(value)) {
    check(functions.aoti_torch_get_dim(handle, &dim));
    check(functions.aoti_torch_get_sizes(handle, &sizes));
    check(functions.aoti_torch_get_strides(handle, &strides));
    check(functions.aoti_torch_get_dtype(handle, &dtype));
  }
  void* data() const {
    void* pointer;
    check(functions.aoti_torch_get_data_ptr(handle, &pointer));
    return pointer;
  }
  bool contiguous() const {
    for (int64_t d = dim - 1, step = 1; d >= 0; step *= sizes[d--]) {
      if (sizes[d] != 1 && strides[d] != step) return false;
    }
    return true;
  }
  Handle handle;
  int64_t dim, *sizes, *strides;
  int32_t dtype;
};

std::string_view text_of(StableIValue value) {
  const Handle handle = reinterpret_cast<Handle>(value);
  size_t length;
  const char* data;
  check(functions.torch_string_length(handle, &length));
  check(functions.torch_string_c_str(handle, &data));
  return {data, length};
}

// An optional argument is a pointer to its value.
const StableIValue* optional(StableIValue value) { return reinterpret_cast<const StableIValue*>(value); }

int32_t dtype_of(int type) {
  return type == 0   ? functions.aoti_torch_dtype_float32()
         : type == 1 ? functions.aoti_torch_dtype_bfloat16()
                     : functions.aoti_torch_dtype_float16();
}

// A call that a kernel can take as it is.
struct Ready {
  const cpu::RunLinear* run;
  cpu::LinearCall call;
  void* tensors[kMostTensors];
  int64_t dim, sizes[kMostDims], strides[kMostDims];  // of y
  int32_t dtype;
};

// The rows of x, or 0 where they are no rows of k neighbours in equal steps.
int64_t rows_of(const Borrowed& x, const LinearTable& table, cpu::LinearCall& call) {
  const int64_t last = x.dim - 1;
  if (last < 0 || last >= kMostDims || x.sizes[last] != table.k) return 0;
  if (x.dim == 2) {
    call.x_stride = x.strides[0];
    return x.strides[1] == 1 ? x.sizes[0] : 0;
  }
  if (!x.contiguous()) return 0;
  call.x_stride = table.k;
  int64_t rows = 1;
  for (int64_t d = 0; d < last; ++d) rows *= x.sizes[d];
  return rows;
}

bool take_bias(const StableIValue* bias, const LinearTable& table, Ready& ready) {
  if (!bias) return true;
  const Borrowed tensor(*bias);
  if (tensor.dim != 1 || tensor.sizes[0] != table.n || tensor.dtype != ready.dtype || !tensor.contiguous())
    return false;
  ready.call.bias = tensor.data();
  return true;
}

bool take_residual(const StableIValue* residual, Ready& ready) {
  if (!residual) return true;
  const Borrowed tensor(*residual);
  if (tensor.dim != ready.dim || tensor.dtype != ready.dtype || !tensor.contiguous()) return false;
  if (memcmp(tensor.sizes, ready.sizes, ready.dim * sizeof *ready.sizes) != 0) return false;
  ready.call.residual = tensor.data();
  return true;
}

bool take_packed(StableIValue packed, const LinearTable& table, const LinearEntry& entry, Ready& ready) {
  const Handle list = reinterpret_cast<Handle>(packed);
  size_t size;
  check(functions.torch_list_size(list, &size));
  if (int64_t(size) < table.needs || entry.count > kMostTensors) return false;
  for (int64_t i = 0; i < entry.count; ++i) {
    StableIValue item;
    check(functions.torch_list_get_item(list, size_t(entry.start + i), &item));
    check(functions.aoti_torch_get_data_ptr(reinterpret_cast<Handle>(item), &ready.tensors[i]));
  }
  ready.call.packed = ready.tensors;
  return true;
}

// Whether a kernel can take the call as it is.
bool prepare(const LinearOp& op, const StableIValue* stack, Ready& ready) {
  if (bypassed.load(std::memory_order_relaxed)) return false;
  const LinearTable* table = op.tables.find(text_of(stack[kKernels]));
  if (!table) return false;
  const Borrowed x(stack[kX]);
  ready.dtype = dtype_of(table->type);
  ready.call.m = x.dtype == ready.dtype ? rows_of(x, *table, ready.call) : 0;
  if (ready.call.m == 0 || table->n == 0 || table->k == 0) return false;
  const auto entry = std::find_if(table->entries.begin(), table->entries.end(),
                                  [&](const LinearEntry& each) { return each.limit >= ready.call.m; });
  if (entry == table->entries.end() || !entry->run) return false;
  ready.run = &entry->run;
  ready.dim = x.dim;
  memcpy(ready.sizes, x.sizes, x.dim * sizeof *x.sizes);
  ready.sizes[x.dim - 1] = table->n;
  for (int64_t d = x.dim - 1, step = 1; d >= 0; step *= ready.sizes[d--]) ready.strides[d] = step;
  const std::string_view activation = text_of(stack[kActivation]);
  size_t code = 0;
  while (code < op.activations.size() && op.activations[code] != activation) ++code;
  if (code == op.activations.size()) return false;
  ready.call.activation = int(code);
  ready.call.x = x.data();
  return take_bias(optional(stack[kBias]), *table, ready) && take_residual(optional(stack[kResidual]), ready) &&
         take_packed(stack[kPacked], *table, *entry, ready);
}

// The arguments of a call are the implementation's own, to the last one, whatever becomes of the call.
struct Owned {
  explicit Owned(const StableIValue* arguments) { memcpy(stack, arguments, sizeof stack); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    drop(stack[kX]);
    const Handle list = reinterpret_cast<Handle>(stack[kPacked]);
    size_t size = 0;
    functions.torch_list_size(list, &size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      if (functions.torch_list_get_item(list, i, &item) == 0) drop(item);
    }
    functions.torch_delete_list(list);
    for (const Argument text : {kKernels, kActivation}) {
      functions.torch_delete_string(reinterpret_cast<Handle>(stack[text]));
    }
    for (const Argument tensor : {kBias, kResidual}) {
      if (const StableIValue* value = optional(stack[tensor])) {
        drop(*value);
        delete value;
      }
    }
  }
  static void drop(StableIValue tensor) { functions.aoti_torch_delete_tensor_object(reinterpret_cast<Handle>(tensor)); }
  StableIValue stack[kResidual + 1];
};

// Frees y unless it is handed over.
struct Output {
  explicit Output(const Ready& ready) {
    constexpr int32_t kCpu = 0, kAnyIndex = -1;
    check(functions.aoti_torch_empty_strided(ready.dim, ready.sizes, ready.strides, ready.dtype, kCpu, kAnyIndex,
                                             &handle));
  }
  ~Output() {
    if (handle) functions.aoti_torch_delete_tensor_object(handle);
  }
  Handle handle = nullptr;
};

void call(const LinearOp& op, StableIValue* stack) {
  const Owned owned(stack);
  stack[0] = 0;  // None
  try {
    Ready ready{};
    if (!prepare(op, owned.stack, ready)) return;
    Output y(ready);
    check(functions.aoti_torch_get_data_ptr(y.handle, &ready.call.y));
    if (poisoned.load(std::memory_order_relaxed)) {
      const int itemsize = ready.dtype == functions.aoti_torch_dtype_float32() ? 4 : 2;
      memset(ready.call.y, 0xff, size_t(ready.sizes[0] * ready.strides[0] * itemsize));
    }
    (*ready.run)(ready.call);
    auto* const result = new StableIValue;
    *result = reinterpret_cast<StableIValue>(std::exchange(y.handle, nullptr));
    stack[0] = reinterpret_cast<StableIValue>(result);
  } catch (const std::exception&) {  // too little memory: Python will meet it too, and say so in errors of their type
  }
}

// The dispatcher calls a plain function: one for each op.
template <int kOp>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  call(ops[kOp], stack);
}

template <int... kOps>
Boxed boxed_of(int op, std::integer_sequence<int, kOps...>) {
  constexpr Boxed all[] = {boxed<kOps>...};
  return all[op];
}

LinearOp& op_of(const std::string& name) {
  for (int i = 0; i < op_count; ++i) {
    if (ops[size_t(i)].name == name) return ops[size_t(i)];
  }
  throw std::runtime_error("ajour::" + name + " is not implemented here");
}

}  // namespace

void implement_linear(const std::string& name, const std::vector<std::string>& activations) {
  if (op_count == kMostOps) throw std::runtime_error("there is no room for another op: raise kMostOps");
  LinearOp& op = ops[size_t(op_count)];
  op.name = name;
  op.activations = activations;
  Handle library;
  check(functions.aoti_torch_library_init_impl("ajour", "CPU", __FILE__, __LINE__, &library));
  check(functions.torch_library_impl(library, (name + "_compiled").c_str(),
                                     boxed_of(op_count++, std::make_integer_sequence<int, kMostOps>()), kVersion));
}

void add_table(const std::string& name, const std::string& text, LinearTable table) {
  op_of(name).tables.add(text, std::move(table));
}

void bypass(bool on) { bypassed.store(on, std::memory_order_relaxed); }

void poison(bool on) { poisoned.store(on, std::memory_order_relaxed); }

}  // namespace ajour::torch_abi
