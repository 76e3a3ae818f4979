// The only inline PTX. Each function is one instruction, or the few that always go together; section numbers are those
// of the PTX ISA.
#pragma once
#include <cstdint>

namespace ajour::cuda {

enum class Float16Kind { bfloat16, float16 };

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// ---- barriers in shared memory (9.7.13.15)

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes initialized barriers known to bulk copies; before the block's first __syncthreads.
__device__ __forceinline__ void barrier_init_done() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#else
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
#endif
  }
}

// ---- asynchronous copies from global to shared memory (9.7.9.25)

// 16 bytes, of which `valid` are read and the rest are zeros.
__device__ __forceinline__ void copy_16(void* to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid)
               : "memory");
}

// Closes a group of this thread's copies, which may be empty.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's latest groups, 0 to 3, are still under way.
__device__ __forceinline__ void copies_wait(int pending) {
  switch (pending) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
  }
}

// This thread arrives at the barrier once all its earlier copies have landed.
__device__ __forceinline__ void arrive_with_copies(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Whether copies of whole slabs are made by one thread, which then arrives for them.
#if __CUDA_ARCH__ >= 900
constexpr bool kBulk = true;
#else
constexpr bool kBulk = false;
#endif

// Arrives at the barrier and makes it wait for `bytes` more.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// A multiple of 16 bytes, aligned to 16, that is read once: it should not push x out of the L2 cache.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

// ---- loads of what is read once: past the L1 cache, which x and counters need more

__device__ __forceinline__ uint2 load_once_8(const void* from) {
  uint2 found;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(found.x), "=r"(found.y) : "l"(from));
  return found;
}

__device__ __forceinline__ uint32_t load_once_4(const void* from) {
  uint32_t found;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(found) : "l"(from));
  return found;
}

// ---- fragments and products (9.7.14.5, 9.7.14.6)

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&b)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(shared_address(row))
               : "memory");
}

#define AJOUR_MMA(OPCODE, TYPES)                                                               \
  asm volatile(OPCODE TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// d: [16, 8] += a: [16, 16] @ b: [16, 8].
template <Float16Kind Kind>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Kind == Float16Kind::bfloat16) {
    AJOUR_MMA("mma.sync.aligned.m16n8k16.row.col", ".f32.bf16.bf16.f32");
  } else {
    AJOUR_MMA("mma.sync.aligned.m16n8k16.row.col", ".f32.f16.f16.f32");
  }
}
#undef AJOUR_MMA

#define AJOUR_MMA_SPARSE(TYPES)                                                                                     \
  asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col" TYPES                                       \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"               \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                     \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata), \
                 "n"(Selector))

// d: [16, 8] += a: [16, 32] @ b: [32, 8], a 2:4; the metadata of lanes 2 * Selector and 2 * Selector + 1 of four
// counts.
template <Float16Kind Kind, int Selector>
__device__ __forceinline__ void mma_sparse(float (&d)[4], const uint4& a, const uint32_t (&b)[4], uint32_t metadata) {
  if constexpr (Kind == Float16Kind::bfloat16) {
    AJOUR_MMA_SPARSE(".f32.bf16.bf16.f32");
  } else {
    AJOUR_MMA_SPARSE(".f32.f16.f16.f32");
  }
}
#undef AJOUR_MMA_SPARSE

// ---- arithmetic

// A shift by 32 and more gives 0, also where `by` is negative and taken as unsigned.
__device__ __forceinline__ uint32_t shift_left(uint32_t value, int by) {
  uint32_t shifted;
  asm("shl.b32 %0, %1, %2;" : "=r"(shifted) : "r"(value), "r"(by));
  return shifted;
}

__device__ __forceinline__ uint64_t shift_left(uint64_t value, int by) {  // by 64 and more likewise
  uint64_t shifted;
  asm("shl.b64 %0, %1, %2;" : "=l"(shifted) : "l"(value), "r"(by));
  return shifted;
}

// Four bytes of the eight in `low` and `high`, as the four nibbles of `which` say, the lowest first.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which) {
  uint32_t picked;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(low), "r"(high), "r"(which));
  return picked;
}

template <Float16Kind Kind>
__device__ __forceinline__ float to_float(uint16_t bits) {
  if constexpr (Kind == Float16Kind::bfloat16) return __uint_as_float(uint32_t(bits) << 16);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <Float16Kind Kind>
__device__ __forceinline__ uint16_t from_float(float value) {
  uint16_t bits;
  if constexpr (Kind == Float16Kind::bfloat16) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  return bits;
}

}  // namespace ptx
}  // namespace ajour::cuda
