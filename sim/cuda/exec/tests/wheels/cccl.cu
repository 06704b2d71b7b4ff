// Kernels that use CCCL as a program would: CUB's collectives of a warp, a block and a device, and libcu++. make.py compiles them with
// the headers of the wheel nvidia-cuda-cccl-cu12; what the PTX executes is CCCL's algorithms.

#include <cub/block/block_discontinuity.cuh>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_histogram.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_merge_sort.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cub/block/block_store.cuh>
#include <cub/warp/warp_merge_sort.cuh>
#include <cub/warp/warp_reduce.cuh>
#include <cub/warp/warp_scan.cuh>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/std/complex>
#include <cuda/std/cstdint>

constexpr int THREADS = 128;
constexpr int ITEMS = 4;
using Index = cuda::std::int32_t;

struct Maximum {
    template <class T> __device__ T operator()(T a, T b) const { return a < b ? b : a; }
};

struct Less {
    template <class T> __device__ bool operator()(T a, T b) const { return a < b; }
};

// The sum of count numbers: a block's by shuffles, the grid's by the block that is last to count itself.
#ifdef REDUCE
extern "C" __global__ void reduce(float* sum, const float* x, int count, float* parts, unsigned* done) {
    using Reduce = cub::BlockReduce<float, THREADS>;
    __shared__ typename Reduce::TempStorage storage;
    __shared__ bool last;
    float mine = 0;
    for (int at = blockIdx.x * THREADS + threadIdx.x; at < count; at += gridDim.x * THREADS) mine += x[at];
    float total = Reduce(storage).Sum(mine);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = total;
        cuda::atomic_ref<unsigned, cuda::thread_scope_device> counter(*done);
        last = counter.fetch_add(1, cuda::std::memory_order_acq_rel) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    mine = 0;
    for (int at = threadIdx.x; at < gridDim.x; at += THREADS) mine += parts[at];
    total = Reduce(storage).Sum(mine);
    if (threadIdx.x == 0) *sum = total;
}

// The highest of a block's first count numbers, by the algorithm that rakes shared memory.
extern "C" __global__ void reduce_raking(double* highest, const double* x, int count) {
    using Reduce = cub::BlockReduce<double, THREADS, cub::BLOCK_REDUCE_RAKING>;
    __shared__ typename Reduce::TempStorage storage;
    double mine = threadIdx.x < count ? x[blockIdx.x * count + threadIdx.x] : 0;
    double most = Reduce(storage).Reduce(mine, Maximum(), count);
    if (threadIdx.x == 0) highest[blockIdx.x] = most;
}

// Sums of each 8 lanes, of lanes between flags, and the warp's highest 64-bit integer.
extern "C" __global__ void warp_reduce(Index* sums, Index* segments, long long* highest, const Index* x, const int* heads, const long long* wide) {
    using Eight = cub::WarpReduce<Index, 8>;
    using Whole = cub::WarpReduce<Index>;
    using Wide = cub::WarpReduce<long long>;
    __shared__ typename Eight::TempStorage eights[THREADS / 8];
    __shared__ typename Whole::TempStorage wholes[THREADS / 32];
    __shared__ typename Wide::TempStorage wides[THREADS / 32];
    int at = threadIdx.x;
    Index sum = Eight(eights[at / 8]).Sum(x[at]);
    if (at % 8 == 0) sums[at / 8] = sum;
    Index segment = Whole(wholes[at / 32]).HeadSegmentedSum(x[at], heads[at]);
    if (at % 32 == 0 || heads[at]) segments[at] = segment;
    long long most = Wide(wides[at / 32]).Reduce(wide[at], Maximum());
    if (at % 32 == 0) highest[at / 32] = most;
}
#endif

// Running sums before and with each number, and of complex numbers with doubles.
#ifdef SCAN
extern "C" __global__ void scan(Index* before, Index* with, Index* total, const Index* x) {
    using Load = cub::BlockLoad<Index, THREADS, ITEMS, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
    using Store = cub::BlockStore<Index, THREADS, ITEMS, cub::BLOCK_STORE_TRANSPOSE>;
    using Scan = cub::BlockScan<Index, THREADS>;
    using Raking = cub::BlockScan<Index, THREADS, cub::BLOCK_SCAN_RAKING_MEMOIZE>;
    __shared__ union {
        typename Load::TempStorage load;
        typename Store::TempStorage store;
        typename Scan::TempStorage scan;
        typename Raking::TempStorage raking;
    } storage;
    int first = blockIdx.x * THREADS * ITEMS;
    Index items[ITEMS], sums[ITEMS], all;
    Load(storage.load).Load(x + first, items);
    __syncthreads();
    Scan(storage.scan).ExclusiveSum(items, sums, all);
    __syncthreads();
    Store(storage.store).Store(before + first, sums);
    __syncthreads();
    Raking(storage.raking).InclusiveSum(items, sums);
    __syncthreads();
    Store(storage.store).Store(with + first, sums);
    if (threadIdx.x == 0) total[blockIdx.x] = all;
}

// Each lane's highest number so far, of 64 bits.
extern "C" __global__ void warp_scan(unsigned long long* out, const unsigned long long* x) {
    using Scan = cub::WarpScan<unsigned long long>;
    __shared__ typename Scan::TempStorage storage[THREADS / 32];
    int at = blockIdx.x * THREADS + threadIdx.x;
    unsigned long long value;
    Scan(storage[threadIdx.x / 32]).InclusiveScan(x[at], value, Maximum());
    out[at] = value;
}
#endif

// A block's keys in order with their values, by bits; and floats from high to low.
#ifdef RADIX
extern "C" __global__ void radix_sort(unsigned* keys, unsigned* values) {
    using Sort = cub::BlockRadixSort<unsigned, THREADS, ITEMS, unsigned>;
    __shared__ typename Sort::TempStorage storage;
    int first = (blockIdx.x * THREADS + threadIdx.x) * ITEMS;
    unsigned key[ITEMS], value[ITEMS];
    cub::LoadDirectBlockedVectorized(threadIdx.x, keys + blockIdx.x * THREADS * ITEMS, key);
    for (int item = 0; item < ITEMS; item++) value[item] = values[first + item];
    Sort(storage).Sort(key, value);
    for (int item = 0; item < ITEMS; item++) keys[first + item] = key[item], values[first + item] = value[item];
}

extern "C" __global__ void radix_sort_floats(float* keys) {
    using Sort = cub::BlockRadixSort<float, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    float key[ITEMS];
    float* mine = keys + blockIdx.x * THREADS * ITEMS;
    cub::LoadDirectBlocked(threadIdx.x, mine, key);
    Sort(storage).SortDescendingBlockedToStriped(key);
    cub::StoreDirectStriped<THREADS>(threadIdx.x, mine, key);
}
#endif

// A block's count integers and a warp's doubles in order, by merging, which reads an element that nothing wrote and does not use
// it: with clear, something did.
#ifdef MERGE
template <class T> __device__ void zero(T& storage, bool clear) {
    for (int at = threadIdx.x; clear && at < sizeof(T) / 4; at += THREADS) reinterpret_cast<unsigned*>(&storage)[at] = 0;
    __syncthreads();
}

extern "C" __global__ void merge_sort(Index* x, int count, bool clear) {
    using Sort = cub::BlockMergeSort<Index, THREADS, ITEMS>;
    __shared__ typename Sort::TempStorage storage;
    zero(storage, clear);
    Index items[ITEMS];
    Index* mine = x + blockIdx.x * count;
    cub::LoadDirectBlocked(threadIdx.x, mine, items, count, 0x7fffffff);
    Sort(storage).Sort(items, Less(), count, 0x7fffffff);
    cub::StoreDirectBlocked(threadIdx.x, mine, items, count);
}

extern "C" __global__ void warp_merge_sort(double* x, bool clear) {
    using Sort = cub::WarpMergeSort<double, ITEMS, 16>;
    __shared__ typename Sort::TempStorage storage[THREADS / 16];
    zero(storage, clear);
    double items[ITEMS];
    double* mine = x + (blockIdx.x * THREADS + threadIdx.x) * ITEMS;
    for (int item = 0; item < ITEMS; item++) items[item] = mine[item];
    Sort(storage[threadIdx.x / 16]).Sort(items, Less());
    for (int item = 0; item < ITEMS; item++) mine[item] = items[item];
}
#endif

// How often each byte is in a block's part, by atomics and by sorting; where runs of a value begin.
#ifdef HISTOGRAM
extern "C" __global__ void histogram(unsigned* by_atomics, unsigned* by_sort, const unsigned char* x) {
    using Atomics = cub::BlockHistogram<unsigned char, THREADS, ITEMS, 256, cub::BLOCK_HISTO_ATOMIC>;
    using Sort = cub::BlockHistogram<unsigned char, THREADS, ITEMS, 256, cub::BLOCK_HISTO_SORT>;
    __shared__ typename Atomics::TempStorage atomics;
    __shared__ typename Sort::TempStorage sort;
    __shared__ unsigned bins[256], sorted[256];
    unsigned char items[ITEMS];
    cub::LoadDirectBlocked(threadIdx.x, x + blockIdx.x * THREADS * ITEMS, items);
    Atomics(atomics).Histogram(items, bins);
    Sort(sort).Histogram(items, sorted);
    __syncthreads();
    for (int bin = threadIdx.x; bin < 256; bin += THREADS) {
        atomicAdd(by_atomics + bin, bins[bin]);
        atomicAdd(by_sort + bin, sorted[bin]);
    }
}

extern "C" __global__ void run_starts(int* count, Index* starts, const Index* x) {
    using Edges = cub::BlockDiscontinuity<Index, THREADS>;
    using Scan = cub::BlockScan<int, THREADS>;
    __shared__ union {
        typename Edges::TempStorage edges;
        typename Scan::TempStorage scan;
    } storage;
    Index items[ITEMS];
    int heads[ITEMS], places[ITEMS], all;
    cub::LoadDirectBlocked(threadIdx.x, x, items);
    Edges(storage.edges).FlagHeads(heads, items, cub::Inequality());
    __syncthreads();
    Scan(storage.scan).ExclusiveSum(heads, places, all);
    for (int item = 0; item < ITEMS; item++)
        if (heads[item]) starts[places[item]] = threadIdx.x * ITEMS + item;
    if (threadIdx.x == 0) *count = all;
}
#endif

// Libcu++: atomics of every order and width, an update by compare and swap, a barrier object that a block's halves take turns by.
#ifdef ATOMICS
extern "C" __global__ void atomics(unsigned* counts, unsigned long long* bits, float* highest, double* sum, const float* x) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    cuda::atomic_ref<unsigned, cuda::thread_scope_device>(counts[0]).fetch_add(at, cuda::std::memory_order_relaxed);
    cuda::atomic_ref<unsigned, cuda::thread_scope_system>(counts[1]).fetch_max(at, cuda::std::memory_order_seq_cst);
    cuda::atomic_ref<unsigned, cuda::thread_scope_device>(counts[2]).fetch_xor(at * 0x9e3779b9u, cuda::std::memory_order_release);
    cuda::atomic_ref<unsigned, cuda::thread_scope_device>(counts[3]).fetch_sub(at, cuda::std::memory_order_acquire);
    cuda::atomic_ref<unsigned long long, cuda::thread_scope_device>(bits[0]).fetch_or(1ull << (at % 64), cuda::std::memory_order_acq_rel);
    cuda::atomic_ref<unsigned long long, cuda::thread_scope_device>(bits[1]).fetch_and(~(1ull << (at % 64)), cuda::std::memory_order_relaxed);
    cuda::atomic_ref<float, cuda::thread_scope_device>(*highest).fetch_max(x[at], cuda::std::memory_order_relaxed);
    cuda::atomic_ref<double, cuda::thread_scope_device>(*sum).fetch_add(x[at], cuda::std::memory_order_relaxed);
}

extern "C" __global__ void barrier_turns(int* out, int turns) {
    __shared__ cuda::barrier<cuda::thread_scope_block> ready, taken;
    __shared__ int value[THREADS / 2];
    if (threadIdx.x == 0) {
        init(&ready, THREADS);
        init(&taken, THREADS);
    }
    __syncthreads();
    int lane = threadIdx.x % (THREADS / 2);
    int sum = 0;
    for (int turn = 0; turn < turns; turn++) {
        if (threadIdx.x < THREADS / 2) {
            value[lane] = turn * lane;
            (void)ready.arrive();
            taken.arrive_and_wait();
        } else {
            ready.arrive_and_wait();
            sum += value[THREADS / 2 - 1 - lane];
            (void)taken.arrive();
        }
    }
    if (threadIdx.x >= THREADS / 2) out[blockIdx.x * (THREADS / 2) + lane] = sum;
}
#endif

// A block's part copied to shared memory and back, a step ahead, by cuda::memcpy_async.
#ifdef COPIES
#include <cuda/pipeline>
extern "C" __global__ void copies(float* out, const float* x, int steps) {
    __shared__ alignas(16) float stage[2][THREADS * 4];
    auto pipe = cuda::make_pipeline();
    auto fetch = [&](int step) {
        pipe.producer_acquire();
        cuda::memcpy_async(&stage[step % 2][threadIdx.x * 4], x + (step * THREADS + threadIdx.x) * 4, cuda::aligned_size_t<16>(16), pipe);
        pipe.producer_commit();
    };
    fetch(0);
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) fetch(step + 1);
        if (step + 1 < steps) cuda::pipeline_consumer_wait_prior<1>(pipe);
        else cuda::pipeline_consumer_wait_prior<0>(pipe);
        __syncthreads();
        for (int part = 0; part < 4; part++)
            out[(step * 4 + part) * THREADS + threadIdx.x] = 2 * stage[step % 2][part * THREADS + (threadIdx.x ^ 1)];
        __syncthreads();
        pipe.consumer_release();
    }
}
#endif

// Products of complex numbers, and quotients of 128 bits.
#ifdef WIDE
extern "C" __global__ void complex_powers(cuda::std::complex<double>* out, const cuda::std::complex<double>* x, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) out[at] = cuda::std::sqrt(x[at]) * cuda::std::exp(x[at]) / (x[at] + 2.0);
}

extern "C" __global__ void long_division(unsigned __int128* quotients, unsigned __int128* rests, const unsigned __int128* a, const unsigned __int128* b, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    quotients[at] = a[at] / b[at];
    rests[at] = a[at] * b[at] + a[at] % b[at];
}
#endif
