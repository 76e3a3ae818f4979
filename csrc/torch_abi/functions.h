// Torch's C functions (its stable ABI, torch 2.10 and newer), declared by hand and looked up in the loaded library, so
// that _C needs no header and no library of torch to be built.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ajour::torch_abi {

using Handle = void*;           // a tensor, a list or a string
using StableIValue = uint64_t;  // an argument or a result: a handle, a number, or a pointer to one (null: None)
using Status = int32_t;         // 0: fine
using Boxed = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);

constexpr uint64_t kVersion = 0x020a000000000000;  // of the ABI that is spoken: torch 2.10

// Names and signatures are torch's (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h).
struct Functions {
  Status (*torch_parallel_for)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);
  Status (*torch_get_num_threads)(uint32_t*);
  Status (*aoti_torch_library_init_impl)(const char* name, const char* key, const char* file, uint32_t line, Handle*);
  Status (*torch_library_impl)(Handle library, const char* name, Boxed, uint64_t version);
  Status (*aoti_torch_get_dim)(Handle, int64_t*);
  Status (*aoti_torch_get_sizes)(Handle, int64_t**);
  Status (*aoti_torch_get_strides)(Handle, int64_t**);
  Status (*aoti_torch_get_dtype)(Handle, int32_t*);
  Status (*aoti_torch_get_data_ptr)(Handle, void**);
  Status (*aoti_torch_empty_strided)(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                     int32_t device_type, int32_t device_index, Handle*);
  Status (*aoti_torch_delete_tensor_object)(Handle);
  Status (*torch_list_size)(Handle, size_t*);
  Status (*torch_list_get_item)(Handle, size_t, StableIValue*);
  Status (*torch_delete_list)(Handle);
  Status (*torch_string_length)(Handle, size_t*);
  Status (*torch_string_c_str)(Handle, const char**);
  Status (*torch_delete_string)(Handle);
  int32_t (*aoti_torch_dtype_float32)();
  int32_t (*aoti_torch_dtype_bfloat16)();
  int32_t (*aoti_torch_dtype_float16)();
};

// Looks them up; throws std::runtime_error if torch is not loaded or too old.
void bind_functions();

// Those that were found; null pointers before bind_functions().
extern Functions functions;

// Throws std::runtime_error unless torch says that all went well.
void check(Status status);

}  // namespace ajour::torch_abi
