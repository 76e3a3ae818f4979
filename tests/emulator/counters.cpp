// csrc/cuda/counters.cpp beside a CUDA runtime that only keeps accounts: counters. No two launches that can run at once
// share a counter, memory is asked for in a way that a capture allows, and a graph's counters come back with its end.
#include "cuda/counters.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <vector>

namespace {

struct Graph {
  std::vector<cudaUserObject_t> held;
};
struct Object {
  cudaHostFn_t destroy;
  void* what;
};
struct Stream {
  unsigned long long id = 0;
  Graph* captured = nullptr;
};

int allocations = 0;
bool relaxed = false, capturing = false, refuses = false;

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "counters: %s\n", what);
  std::exit(1);
}

template <class T, class Handle>
T* of(Handle handle) {
  return reinterpret_cast<T*>(handle);
}

void end(Graph* graph) {
  for (cudaUserObject_t each : graph->held) {
    const auto* object = of<Object>(each);
    object->destroy(object->what);
    delete object;
  }
  delete graph;
}

}  // namespace

extern "C" {
cudaError_t CUDARTAPI cudaMalloc(void** found, size_t bytes) {
  expect(relaxed || !capturing, "memory is asked for as a capture forbids it");
  if (refuses) return cudaErrorMemoryAllocation;
  ++allocations;
  *found = std::malloc(bytes);
  std::memset(*found, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  expect(of<Stream>(stream)->id == 0, "memory is cleared on a stream of somebody else's");
  std::memset(at, value, bytes);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  expect(flags == cudaStreamNonBlocking, "a stream that waits for the default one");
  *stream = of<CUstream_st>(new Stream);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) {
  delete of<Stream>(stream);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const bool before = relaxed;
  relaxed = *mode == cudaStreamCaptureModeRelaxed;
  *mode = before ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
  return cudaSuccess;
}
#if CUDART_VERSION >= 13000
cudaError_t CUDARTAPI cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                               unsigned long long*, cudaGraph_t* graph, const cudaGraphNode_t**,
                                               const cudaGraphEdgeData**, size_t*) {
#else
cudaError_t CUDARTAPI cudaStreamGetCaptureInfo_v2(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                                  unsigned long long*, cudaGraph_t* graph, const cudaGraphNode_t**,
                                                  size_t*) {
#endif
  Graph* captured = of<Stream>(stream)->captured;
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  *graph = of<CUgraph_st>(captured);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = of<Stream>(stream)->id;
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaUserObjectCreate(cudaUserObject_t* object, void* what, cudaHostFn_t destroy, unsigned count,
                                           unsigned flags) {
  expect(count == 1 && flags == cudaUserObjectNoDestructorSync, "CUDA knows no other user objects");
  *object = of<CUuserObject_st>(new Object{destroy, what});
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaUserObjectRelease(cudaUserObject_t, unsigned) { return cudaSuccess; }
cudaError_t CUDARTAPI cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned, unsigned flags) {
  expect(flags == cudaGraphUserObjectMove, "a graph must take its counters over");
  of<Graph>(graph)->held.push_back(object);
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaGetLastError() { return cudaSuccess; }
const char* CUDARTAPI cudaGetErrorString(cudaError_t) { return "out of memory"; }
}

namespace {

using ajour::cuda::counters_for;

unsigned* given(Stream& stream, int count, int device = 0) {
  unsigned* const found = counters_for(device, of<CUstream_st>(&stream), count);
  expect(std::all_of(found, found + count, [](unsigned c) { return c == 0; }), "counters are not zero");
  return found;
}

bool apart(const unsigned* a, int a_count, const unsigned* b, int b_count) {
  return a + a_count <= b || b + b_count <= a;
}

void streams() {
  Stream one{1}, two{2};
  unsigned* const first = given(one, 100);
  expect(given(one, 7) == first && given(one, 1024) == first, "a stream's launches share its counters");
  expect(apart(first, 1024, given(two, 1024), 1024), "two streams share counters");
  expect(apart(first, 1024, given(one, 100, 1), 100), "two devices share counters");
  unsigned* const larger = given(one, 5000);
  expect(apart(first, 1024, larger, 5000), "launches under way lose their counters");
  expect(given(one, 100) == larger, "a stream has its larger counters from then on");
  given(one, 300000);  // more than CUDA is asked for at once
}

void graphs() {
  Stream stream{9};
  unsigned* const eager = given(stream, 40);
  std::vector<std::pair<Graph*, std::set<unsigned*>>> captured;
  std::set<unsigned*> all;
  for (int i = 0; i < 2; ++i) {  // captured on one stream, replayed wherever
    captured.push_back({new Graph, {}});
    stream.captured = captured.back().first;
    capturing = true;
    for (int call = 0; call < 8; ++call) {
      unsigned* const found = given(stream, 40);
      for (unsigned* other : all) expect(apart(found, 40, other, 40), "two captured launches share counters");
      expect(apart(found, 40, eager, 1024), "a captured launch shares the stream's counters");
      all.insert(found);
      captured.back().second.insert(found);
    }
    capturing = false;
    stream.captured = nullptr;
  }
  expect(given(stream, 40) == eager, "the stream's own counters stay");
  end(captured[0].first);
  stream.captured = new Graph;
  const int before = allocations;
  for (int call = 0; call < 8; ++call) {
    expect(captured[0].second.count(given(stream, 40)), "counters of a graph that ended are not used again");
  }
  expect(allocations == before, "memory is asked for though there is some");
  end(captured[1].first);
  end(stream.captured);
}

void a_capture_may_be_the_first_to_ask() {
  Graph* const graph = new Graph;
  Stream stream{10, graph};
  capturing = true;
  for (int i = 0; i < 4; ++i) given(stream, 200000, 2);
  capturing = false;
  expect(!relaxed, "the thread stays in another capture mode");
  end(graph);
}

void no_memory_is_an_error() {
  Stream stream{11};
  refuses = true;
  try {
    given(stream, 10, 3);
  } catch (const std::exception& error) {
    expect(std::strstr(error.what(), "memory for counters: out of memory"), error.what());
    refuses = false;
    given(stream, 10, 3);
    return;
  }
  expect(false, "no memory is no error");
}

}  // namespace

int main() {
  streams();
  graphs();
  a_capture_may_be_the_first_to_ask();
  no_memory_is_an_error();
}
