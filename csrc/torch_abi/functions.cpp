#include "torch_abi/functions.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace ajour::torch_abi {
namespace {

template <class Function>
void look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function)
    throw std::runtime_error("this torch has no " + std::string(name) + ": ajour needs torch 2.10 or newer");
}

}  // namespace

Functions functions{};

void bind_functions() {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  if (!library) throw std::runtime_error("libtorch_cpu.so is not loaded: import torch before ajour");
#define AJOUR_LOOK_UP(name) look_up(library, #name, functions.name)
  AJOUR_LOOK_UP(torch_parallel_for);
  AJOUR_LOOK_UP(torch_get_num_threads);
  AJOUR_LOOK_UP(aoti_torch_library_init_impl);
  AJOUR_LOOK_UP(torch_library_impl);
  AJOUR_LOOK_UP(aoti_torch_get_dim);
  AJOUR_LOOK_UP(aoti_torch_get_sizes);
  AJOUR_LOOK_UP(aoti_torch_get_strides);
  AJOUR_LOOK_UP(aoti_torch_get_dtype);
  AJOUR_LOOK_UP(aoti_torch_get_data_ptr);
  AJOUR_LOOK_UP(aoti_torch_empty_strided);
  AJOUR_LOOK_UP(aoti_torch_delete_tensor_object);
  AJOUR_LOOK_UP(torch_list_size);
  AJOUR_LOOK_UP(torch_list_get_item);
  AJOUR_LOOK_UP(torch_delete_list);
  AJOUR_LOOK_UP(torch_string_length);
  AJOUR_LOOK_UP(torch_string_c_str);
  AJOUR_LOOK_UP(torch_delete_string);
  AJOUR_LOOK_UP(aoti_torch_dtype_float32);
  AJOUR_LOOK_UP(aoti_torch_dtype_bfloat16);
  AJOUR_LOOK_UP(aoti_torch_dtype_float16);
#undef AJOUR_LOOK_UP
}

void check(Status status) {
  if (status != 0) throw std::runtime_error("a function of torch's C ABI failed");
}

}  // namespace ajour::torch_abi
