// Just enough of CUDA's execution model to run the kernels in kernels/.../cuda on a host.
//
// Blocks run one after another. The threads of a block are fibers that take turns; they switch
// only where threads of a device wait for one another: __syncthreads and the warp's collectives,
// which all 32 lanes must reach. Every other block runs its threads from the last to the first, and
// of every four blocks two let one warp run as far as it can before the next one, so that a
// missing barrier shows. What is begun and waited for later, copies to shared memory and products of
// warpgroups, is done as early as it can be in half of the blocks, and as late in the others (early
// copies beside late products, too), so that a missing wait shows. Shared memory whose size the launch says begins with rubbish, at an
// address that is aligned to 16 bytes and no more, and is guarded at its end. A kernel in which some
// thread waits for ever, or that writes beyond its shared memory, is reported.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define threadIdx (simt::self->thread)
#define blockIdx (simt::self->block)
#define blockDim (simt::self->threads)
#define gridDim (simt::self->grid)

using std::max;
using std::min;

namespace simt {

struct Index {
    unsigned x = 0, y = 0;
};

struct Meeting {  // where `size` threads wait for one another
    unsigned size = 0, arrived = 0, generation = 0;
    std::array<int, 32> values = {};
};

// Groups of what one thread has begun; the last one is still open.
struct Begun {
    std::deque<std::vector<std::function<void()>>> groups{1};
    bool late = false;  // done when it is waited for, not when it is begun
    void add(std::function<void()> work) {
        if (late)
            groups.back().push_back(std::move(work));
        else
            work();
    }
    void close() { groups.emplace_back(); }
    void settle(size_t behind) {  // of the closed ones
        for (; groups.size() > behind + 1; groups.pop_front())
            for (const auto& work : groups.front()) work();
    }
};

struct Fiber {
    Index thread, block, threads, grid;
    Begun copies, products;
    Meeting* warp = nullptr;
    Meeting* all = nullptr;
    ucontext_t context;  // where it begins
    jmp_buf place;       // where it waits; unlike swapcontext, no call to the system
    bool begun = false;
    std::vector<char> stack;
    bool done = false;
};

inline Fiber* self = nullptr;
inline jmp_buf scheduler;
inline bool progress = false;
inline bool backwards = false;
inline bool warpwise = false;
inline unsigned turns = 0;  // blocks that have run
inline signed char* window = nullptr;  // shared memory: address 0, a multiple of 1024

constexpr size_t GUARD = 4096, SKEW = 16;

// Goes on with a fiber, until it waits or has ended.
inline void resume(Fiber& fiber) {
    self = &fiber;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

// Lets others go on.
inline void yield() {
    if (_setjmp(self->place) == 0) _longjmp(scheduler, 1);
}

inline void wait(Meeting& meeting) {
    progress = true;
    const unsigned generation = meeting.generation;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        ++meeting.generation;
        return;
    }
    while (meeting.generation == generation) {
        yield();
        if (meeting.generation != generation) progress = true;
    }
}

using Lanes = std::array<int, 32>;

// Every lane's value, seen by every lane.
inline Lanes exchange(int value) {
    Meeting& warp = *self->warp;
    warp.values[self->thread.x % 32] = value;
    wait(warp);
    const Lanes values = warp.values;
    wait(warp);
    return values;
}

template <class Kernel, class Arguments>
struct Call {
    static inline Kernel kernel;
    static inline const Arguments* arguments;
    static void run() {
        std::apply(kernel, *arguments);
        self->done = true;
        progress = true;
        _longjmp(scheduler, 1);
    }
};

// Lets some of the fibers go on until they wait; how many are not done.
inline size_t turn(std::vector<std::unique_ptr<Fiber>>& fibers, size_t begin, size_t end) {
    size_t left = 0;
    for (size_t t = begin; t < end; ++t) {
        Fiber& fiber = *fibers[backwards ? fibers.size() - 1 - t : t];
        if (fiber.done) continue;
        resume(fiber);
        left += fiber.done ? 0 : 1;
    }
    return left;
}

// Runs one block, `together` fibers at a time as far as they can go; false when it cannot finish.
inline bool block(std::vector<std::unique_ptr<Fiber>>& fibers, size_t together) {
    for (size_t left = fibers.size(); left != 0;) {
        bool any = false;
        left = 0;
        for (size_t begin = 0; begin < fibers.size(); begin += together) {
            size_t waiting = 0;
            do {
                progress = false;
                waiting = turn(fibers, begin, begin + together);
                any |= progress;
            } while (progress && waiting != 0 && together < fibers.size());
            left += waiting;
        }
        if (left != 0 && !any) return false;
    }
    return true;
}

template <class... Parameters, size_t... I>
int launch(void (*kernel)(Parameters...), Index grid, unsigned threads, size_t shared,
           void** pointers, std::index_sequence<I...>) {
    using Arguments = std::tuple<Parameters...>;
    using Caller = Call<void (*)(Parameters...), Arguments>;
    const Arguments arguments(*static_cast<Parameters*>(pointers[I])...);
    Caller::kernel = kernel;
    Caller::arguments = &arguments;
    std::vector<Meeting> warps(threads / 32);
    Meeting all;
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (unsigned t = 0; t < threads; ++t) {
        fibers.push_back(std::make_unique<Fiber>());
        fibers[t]->stack.resize(32 << 10);
    }
    std::vector<signed char> room(1024 + SKEW + shared + GUARD);
    window = room.data() + (1024 - (std::uintptr_t)room.data() % 1024) % 1024;
    for (unsigned at = 0; at < grid.x * grid.y; ++at) {
        std::fill(room.begin(), room.end(), (signed char)0x5A);
        backwards = turns % 2 != 0;
        warpwise = turns / 2 % 2 != 0;
        for (Meeting& warp : warps) warp = Meeting{32};
        all = Meeting{threads};
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& fiber = *fibers[t];
            fiber.thread = {t, 0};
            fiber.block = {at % grid.x, at / grid.x};
            fiber.threads = {threads, 1};
            fiber.grid = grid;
            fiber.warp = &warps[t / 32];
            fiber.all = &all;
            fiber.done = fiber.begun = false;
            fiber.copies = fiber.products = Begun();
            fiber.copies.late = backwards != warpwise;
            fiber.products.late = turns / 4 % 2 != 0;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            makecontext(&fiber.context, &Caller::run, 0);
        }
        if (!block(fibers, warpwise ? 32 : threads)) return 1;
        for (const signed char* end = window + SKEW + shared; end < &room.back(); ++end)
            if (*end != 0x5A) return 2;
        ++turns;
    }
    return 0;
}

// cudaLaunchKernel's convention: pointers to the arguments. 0 when every block finished; 1 when one
// waits for ever, 2 when one wrote beyond its shared memory.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), unsigned x, unsigned y, unsigned threads, size_t shared,
           void** pointers) {
    const auto all = std::index_sequence_for<Parameters...>();
    return launch(kernel, Index{x, y}, threads, shared, pointers, all);
}

}  // namespace simt

inline void __syncthreads() { simt::wait(*simt::self->all); }

inline void __syncwarp() { simt::wait(*simt::self->warp); }

inline unsigned __ballot_sync(unsigned, bool predicate) {
    unsigned mask = 0;
    const simt::Lanes values = simt::exchange(predicate ? 1 : 0);
    for (int lane = 0; lane < 32; ++lane) mask |= (unsigned)values[lane] << lane;
    return mask;
}

inline int __reduce_add_sync(unsigned, int value) {
    unsigned sum = 0;
    for (int one : simt::exchange(value)) sum += (unsigned)one;
    return (int)sum;
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    static_assert(sizeof(T) == 4);
    int bits;
    std::memcpy(&bits, &value, 4);
    bits = simt::exchange(bits)[lane];
    std::memcpy(&value, &bits, 4);
    return value;
}

inline int __reduce_max_sync(unsigned, int value) {
    int most = value;
    for (int one : simt::exchange(value)) most = std::max(most, one);
    return most;
}

inline int __syncthreads_or(int predicate) {
    static int any[2] = {};  // one is in use while the other is cleared
    static unsigned turn = 0;
    const unsigned mine = turn % 2;
    if (predicate) any[mine] = 1;
    simt::wait(*simt::self->all);
    const int result = any[mine];
    simt::wait(*simt::self->all);
    turn = mine + 1;
    any[mine] = 0;
    simt::wait(*simt::self->all);
    return result;
}

// ── What tensor.cuh asks of the tensor cores, by the definitions in the PTX ISA ────────────────

inline void multiply(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    simt::Lanes a_of[4], b_of[2];
    for (int i = 0; i < 4; ++i) a_of[i] = simt::exchange((int)a[i]);
    b_of[0] = simt::exchange((int)b0);
    b_of[1] = simt::exchange((int)b1);
    const int lane = (int)simt::self->thread.x % 32;
    const auto byte = [](int word, int at) { return (int)(signed char)((unsigned)word >> 8 * at); };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 32; ++k) {
            const int t = k % 16 / 4;
            const int left = a_of[k / 16 * 2 + row / 8][row % 8 * 4 + t];
            c[i] += byte(left, k % 4) * byte(b_of[k / 16][column * 4 + t], k % 4);
        }
    }
}

inline void load_matrices(unsigned (&out)[4], const signed char* base, int offset) {
    const int lane = (int)simt::self->thread.x % 32;
    const simt::Lanes offsets = simt::exchange(offset);
    for (int j = 0; j < 4; ++j)
        std::memcpy(&out[j], base + offsets[8 * j + lane / 4] + lane % 4 * 4, 4);
}

inline void copy_ahead(signed char* shared, const signed char* global, bool there) {
    simt::self->copies.add([=] {
        if (there)
            std::memcpy(shared, global, 16);
        else
            std::memset(shared, 0, 16);
    });
}

inline void end_of_stage() { simt::self->copies.close(); }

template <int Behind>
void wait_for_stage() {
    simt::self->copies.settle(Behind);
}

// ── What warpgroup.cuh asks of them ────────────────────────────────────────────────────────────

#define MW_SHARED(name) signed char* name = simt::window + simt::SKEW

inline unsigned shared_address(const signed char* shared) {
    return (unsigned)(shared - simt::window);
}

namespace simt {

// Byte k of a line of an operand: K-major, swizzled by 64 bytes; eight lines to a stride.
inline int operand_byte(unsigned long long descriptor, int line, int k) {
    unsigned address = (unsigned)(descriptor & 0x3FFF) << 4;
    const unsigned stride = (unsigned)(descriptor >> 32 & 0x3FFF) << 4;
    address += line / 8 * stride + line % 8 * 64 + k;
    address ^= (address >> 7 & 3) << 4;
    return window[address];
}

}  // namespace simt

inline void begin_product(int (&c)[64], unsigned long long a, unsigned long long b, bool add) {
    for (const unsigned long long one : {a, b}) {  // one descriptor a warp; mode 2, no base offset
        const simt::Lanes low = simt::exchange((int)one), high = simt::exchange(one >> 32);
        for (int lane = 0; lane < 32; ++lane)
            if (low[lane] != low[0] || high[lane] != high[0]) std::abort();
        if (one >> 62 != 2 || (one >> 49 & 7) != 0) std::abort();
    }
    const int thread = (int)simt::self->thread.x % 128;
    simt::self->products.add([&c, a, b, add, thread] {
        for (int at = 0; at < 64; ++at) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + at / 2 % 2 * 8;
            const int column = at / 4 * 8 + thread % 4 * 2 + at % 2;
            int sum = add ? c[at] : 0;
            for (int k = 0; k < 32; ++k)
                sum += simt::operand_byte(a, row, k) * simt::operand_byte(b, column, k);
            c[at] = sum;
        }
    });
}

inline void products_begin() {}

inline void products_end() { simt::self->products.close(); }

template <int Behind>
void products_done() {
    simt::self->products.settle(Behind);
}

inline void sums_are_read(int (&)[64]) {}

inline void show_to_products() {}

template <class T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at += value;
    return before;
}

inline unsigned atomicOr(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at |= value;
    return before;
}

inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
