#include "cuda/counters.h"

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/on_device.h"

namespace ajour::cuda {
namespace {

constexpr int kChunk = 1 << 18;  // counters that are asked of CUDA at once: 1 MB
constexpr int kUnit = 32;        // counters that share no cache line with another launch's
constexpr int kOfStream = 1024;  // counters of a stream at least: those of 65536 rows of a weight

// Memory of torch's will not do: what is captured may only use the graph's own, which holds anything between two
// replays.
struct Shelf {
  std::map<int, std::vector<unsigned*>> free;  // by size
  unsigned* chunk = nullptr;                   // of which `left` counters were never given out
  int left = 0;
  std::map<unsigned long long, std::pair<unsigned*, int>> of_stream;  // by the stream's id, which is never used again
};

struct Piece {
  int device, count;
  unsigned* at;
};

// No call of CUDA's is made while it is held: the end of a graph takes it on a thread of the driver's.
std::mutex& lock() {
  static std::mutex* const held = new std::mutex;  // graphs may end after static objects
  return *held;
}

Shelf& shelf(int device) {
  static std::map<int, Shelf>* const shelves = new std::map<int, Shelf>;
  return (*shelves)[device];
}

// Lets this thread ask for memory while it, or another one, captures a graph.
class Relaxed {
 public:
  Relaxed() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode"); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Waits for the device, once for each chunk; on a stream of its own, as the others may be captured.
unsigned* zeroed(int count) {
  const Relaxed relaxed;
  const size_t bytes = size_t(count) * sizeof(unsigned);
  void* found = nullptr;
  cudaStream_t own = nullptr;
  check(cudaMalloc(&found, bytes), "memory for counters");
  check(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking), "a stream for counters");
  cudaError_t result = cudaMemsetAsync(found, 0, bytes, own);
  if (result == cudaSuccess) result = cudaStreamSynchronize(own);
  cudaStreamDestroy(own);
  check(result, "counters");
  return static_cast<unsigned*>(found);
}

// From the shelf, or null.
unsigned* taken(Shelf& from, int count) {
  std::vector<unsigned*>& same = from.free[count];
  if (!same.empty()) {
    unsigned* const found = same.back();
    same.pop_back();
    return found;
  }
  if (from.left < count) return nullptr;
  from.left -= count;
  return std::exchange(from.chunk, from.chunk + count);
}

unsigned* take(int device, int count) {
  {
    const std::lock_guard<std::mutex> held(lock());
    if (unsigned* found = taken(shelf(device), count)) return found;
  }
  const int size = count < kChunk ? kChunk : count;
  unsigned* const chunk = zeroed(size);
  const std::lock_guard<std::mutex> held(lock());
  shelf(device).chunk = chunk + count;  // what was left of the chunk before is given up
  shelf(device).left = size - count;
  return chunk;
}

void put_back(void* given) {
  const std::unique_ptr<Piece> piece(static_cast<Piece*>(given));
  const std::lock_guard<std::mutex> held(lock());
  shelf(piece->device).free[piece->count].push_back(piece->at);
}

unsigned* of_graph(int device, cudaGraph_t graph, int count) {
  auto piece = std::make_unique<Piece>(Piece{device, count, take(device, count)});
  unsigned* const at = piece->at;
  cudaUserObject_t object = nullptr;
  check(cudaUserObjectCreate(&object, piece.get(), put_back, 1, cudaUserObjectNoDestructorSync), "a graph's counters");
  piece.release();
  const cudaError_t result = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (result != cudaSuccess) cudaUserObjectRelease(object, 1);
  check(result, "a graph's counters");
  return at;
}

unsigned* of_stream(int device, unsigned long long stream, int count) {
  {
    const std::lock_guard<std::mutex> held(lock());
    const auto& known = shelf(device).of_stream;
    const auto found = known.find(stream);
    if (found != known.end() && found->second.second >= count) return found->second.first;
  }
  int size = kOfStream;
  while (size < count) size *= 2;
  unsigned* const at = take(device, size);
  const std::lock_guard<std::mutex> held(lock());
  shelf(device).of_stream[stream] = {at, size};  // launches under way may still count in the smaller one before
  return at;
}

}  // namespace

unsigned* counters_for(int device, cudaStream_t stream, int count) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  cudaGraph_t graph = nullptr;
  check(cudaStreamGetCaptureInfo(stream, &status, &id, &graph), "cudaStreamGetCaptureInfo");
  if (status == cudaStreamCaptureStatusActive) return of_graph(device, graph, (count + kUnit - 1) / kUnit * kUnit);
  check(cudaStreamGetId(stream, &id), "cudaStreamGetId");
  return of_stream(device, id, count);
}

}  // namespace ajour::cuda
