// The scheduler of the emulated device. One block at a time, its threads as fibers on one thread of the CPU.
//
// What it finds, each as an error of the launch and not as a wrong number:
// - a barrier that not all threads of the block reach, or reach at different lines;
// - a warp's shuffle or matrix instruction that not all 32 lanes take part in;
// - an address that is not mapped (buffers and dynamic shared memory end at a page that can't be touched);
// - what the compiler's undefined behaviour sanitizer traps: misaligned vector loads, indices beyond an array's end;
// - dynamic shared memory that is read before it is written holds NaN.
// Missing barriers show as results that depend on the order in which threads run: `order` chooses among several.
#include "emulator.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <vector>

// Fibers change by hand where that is known, elsewhere (or asked for) by the system, which is slower.
#if defined(__x86_64__) && !defined(CLOZE_SYSTEM_FIBERS)
#define CLOZE_OWN_FIBERS 1
#else
#include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr size_t STACK = 1 << 17;
constexpr size_t MOST_THREADS = 1024;

enum class State { Ready, AtBarrier, InWarp, Done };

struct Copy {
    void* to;
    const void* from;
    bool valid;
    int group;
};

struct Fiber {
    Place place;
    State state;
    const char* file;
    int line;
    unsigned parity;
    int warp;
    int lane;
    int groups;
    std::vector<Copy> copies;
#if defined(CLOZE_OWN_FIBERS)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

struct Warp {
    alignas(16) unsigned char slots[2][32 * slot];
    // Fewer than 32 in the last one, if the block has such a size.
    int lanes;
};

struct Device {
    unsigned char* stacks = nullptr;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> none;
    unsigned char* shared = nullptr;
    void (*kernel)(void*) = nullptr;
    void* arguments = nullptr;
    bool late_copies = false;
    // Asynchronous copies of the last launch.
    uint64_t copied = 0;
    Fiber* current = nullptr;
    sigjmp_buf escape;
    char error[512];
#if defined(CLOZE_OWN_FIBERS)
    void* scheduler;
#else
    ucontext_t scheduler;
#endif
};

thread_local Device device;

[[noreturn]] void enter();

#if defined(CLOZE_OWN_FIBERS)
// Saves what the calling convention says a function must keep, and changes stacks.
extern "C" void cloze_switch(void** save, void* load);
asm(R"(
    .text
    .type cloze_switch, @function
cloze_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cloze_switch, .-cloze_switch
)");

void prepare(Fiber& fiber, unsigned char* stack) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // The stack as after a call: 8 off a multiple of 16.
    *--top = reinterpret_cast<void*>(&enter);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
}
void resume(Fiber& fiber) {
    device.current = &fiber;
    cloze_switch(&device.scheduler, fiber.stack_pointer);
    device.current = nullptr;
}
void pause(Fiber& fiber) { cloze_switch(&fiber.stack_pointer, device.scheduler); }
#else
void prepare(Fiber& fiber, unsigned char* stack) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(&enter), 0);
}
void resume(Fiber& fiber) {
    device.current = &fiber;
    swapcontext(&device.scheduler, &fiber.context);
    device.current = nullptr;
}
void pause(Fiber& fiber) { swapcontext(&fiber.context, &device.scheduler); }
#endif

[[noreturn]] void enter() {
    Fiber* fiber = device.current;
    device.kernel(device.arguments);
    fiber->state = State::Done;
    pause(*fiber);
    abort();
}

void describe(const char* what, const Fiber& fiber) {
    const Place& p = fiber.place;
    snprintf(device.error, sizeof(device.error), "%s: block (%u, %u, %u), thread (%u, %u, %u)%s%s:%d", what, p.block.x,
             p.block.y, p.block.z, p.thread.x, p.thread.y, p.thread.z,
             fiber.file ? ", last synchronized at " : "", fiber.file ? fiber.file : "", fiber.line);
}

struct sigaction earlier[3];
const int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGILL};

void on_fault(int signal, siginfo_t* info, void* context) {
    if (device.current) {
        describe(signal == SIGILL ? "undefined behaviour (alignment, array index or arithmetic)"
                                  : "access outside of every buffer",
                 *device.current);
        siglongjmp(device.escape, 1);
    }
    for (int i = 0; i < 3; i++) {
        if (SIGNALS[i] != signal) continue;
        if ((earlier[i].sa_flags & SA_SIGINFO) && earlier[i].sa_sigaction) {
            return earlier[i].sa_sigaction(signal, info, context);
        }
        sigaction(signal, &earlier[i], nullptr);
    }
}

void install_handlers() {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &earlier[i]);
        return true;
    }();
    (void)once;
}

// Runs a warp until each lane has ended or waits for the block.
void run_warp(const std::vector<int>& lanes, int warp) {
    for (;;) {
        bool ran = false;
        const int all = device.warps[size_t(warp)].lanes;
        for (int lane : lanes) {
            if (lane >= all) continue;
            Fiber& fiber = device.fibers[size_t(warp) * 32 + size_t(lane)];
            if (fiber.state != State::Ready) continue;
            ran = true;
            resume(fiber);
        }
        Fiber* first = &device.fibers[size_t(warp) * 32];
        int waiting = 0;
        for (int lane = 0; lane < all; lane++) waiting += first[lane].state == State::InWarp;
        if (waiting == 0) {
            if (!ran) return;
            continue;
        }
        for (int lane = 0; lane < all; lane++) {
            bool together = first[lane].state == State::InWarp && first[lane].file == first[0].file &&
                            first[lane].line == first[0].line;
            if (!together) {
                describe("a warp function that not all lanes reach", first[lane]);
                siglongjmp(device.escape, 1);
            }
        }
        for (int lane = 0; lane < all; lane++) first[lane].state = State::Ready;
    }
}

void run_block(const std::vector<int>& warps, const std::vector<int>& lanes) {
    for (;;) {
        for (int warp : warps) run_warp(lanes, warp);
        const Fiber& first = device.fibers[0];
        if (first.state == State::Done) {
            for (const Fiber& fiber : device.fibers) {
                if (fiber.state != State::Done) {
                    describe("a barrier that not all threads reach", fiber);
                    siglongjmp(device.escape, 1);
                }
            }
            return;
        }
        for (Fiber& fiber : device.fibers) {
            if (fiber.state != State::AtBarrier || fiber.file != first.file || fiber.line != first.line) {
                describe("a barrier that not all threads reach", fiber);
                siglongjmp(device.escape, 1);
            }
        }
        for (Fiber& fiber : device.fibers) fiber.state = State::Ready;
    }
}

// The numbers below n in the order-th order: rising, falling, then shuffled.
std::vector<int> ordered(size_t n, unsigned order) {
    std::vector<int> all(n);
    std::iota(all.begin(), all.end(), 0);
    if (order == 1) std::reverse(all.begin(), all.end());
    uint64_t state = order * 0x9E3779B97F4A7C15u;
    for (size_t i = n; order > 1 && i > 1; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(all[i - 1], all[(state >> 33) % i]);
    }
    return all;
}

}  // namespace

const Place& place() { return device.current->place; }
void* dynamic_shared() { return device.shared; }

void fail(const char* what) {
    describe(what, *device.current);
    siglongjmp(device.escape, 1);
}

void sync_block(const char* file, int line) {
    Fiber& fiber = *device.current;
    fiber.file = file;
    fiber.line = line;
    fiber.state = State::AtBarrier;
    pause(fiber);
}

const unsigned char* exchange(const char* file, int line, const void* in, size_t bytes) {
    Fiber& fiber = *device.current;
    unsigned char* slots = device.warps[size_t(fiber.warp)].slots[fiber.parity];
    memcpy(slots + size_t(fiber.lane) * slot, in, bytes);
    fiber.file = file;
    fiber.line = line;
    fiber.parity ^= 1;
    fiber.state = State::InWarp;
    pause(fiber);
    return slots;
}

void copy_async(void* to, const void* from, bool valid) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0)) {
        fail("an asynchronous copy at an address that is no multiple of 16");
    }
    Fiber& fiber = *device.current;
    device.copied++;
    fiber.copies.push_back({to, from, valid, fiber.groups});
    if (!device.late_copies) copy_wait(-1);
}
void copy_commit() { device.current->groups++; }
void copy_wait(int groups_left) {
    Fiber& fiber = *device.current;
    auto done = [&](const Copy& copy) { return groups_left < 0 || copy.group < fiber.groups - groups_left; };
    for (const Copy& copy : fiber.copies) {
        if (!done(copy)) continue;
        if (copy.valid) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), done), fiber.copies.end());
}

}  // namespace emulator

// Runs `kernel(arguments)` as every thread of the grid. Null, or what went wrong (valid until this thread's next launch).
extern "C" __attribute__((visibility("default"))) const char* cloze_launch(void (*kernel)(void*), void* arguments,
                                                                           const unsigned* grid, const unsigned* block,
                                                                           size_t shared_bytes, unsigned order) {
    using namespace emulator;
    install_handlers();
    device.copied = 0;
    const size_t threads = size_t(block[0]) * block[1] * block[2];
    if (threads == 0 || threads > MOST_THREADS || block[2] > 64 || grid[1] > 65535 || grid[2] > 65535) {
        return "the grid or the block has a size that the device does not take";
    }
    if (shared_bytes > 227 * 1024) return "more shared memory than a multiprocessor has";
    const size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    if (blocks == 0) return "an empty grid";
    if (!device.stacks) {
        void* memory = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return "no memory for the threads' stacks";
        device.stacks = static_cast<unsigned char*>(memory);
    }
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t room = (shared_bytes + page - 1) / page * page;
    void* memory = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return "no memory for the shared memory";
    unsigned char* shared = static_cast<unsigned char*>(memory);
    mprotect(shared + room, page, PROT_NONE);
    // Ends at the guard, as far as the alignment of 16 allows.
    device.shared = shared + (room - (shared_bytes + 15) / 16 * 16);
    device.kernel = kernel;
    device.arguments = arguments;
    device.late_copies = order % 2 == 1;
    device.warps.resize((threads + 31) / 32);
    for (size_t i = 0; i < device.warps.size(); i++) {
        // What lanes that are not there bring is undefined: NaN.
        memset(device.warps[i].slots, 0xFF, sizeof(device.warps[i].slots));
        device.warps[i].lanes = int(std::min(threads - 32 * i, size_t(32)));
    }
    device.fibers.resize(threads);
    const std::vector<int> block_order = ordered(blocks, order);
    const std::vector<int> warp_order = ordered(device.warps.size(), order);
    const std::vector<int> lane_order = ordered(32, order);
    const char* volatile error = nullptr;
    if (sigsetjmp(device.escape, 1) == 0) {
        for (int index : block_order) {
            const unsigned at = unsigned(index);
            // NaN in every type.
            memset(device.shared, 0xFF, (shared_bytes + 15) / 16 * 16);
            for (size_t i = 0; i < threads; i++) {
                Fiber& fiber = device.fibers[i];
                const unsigned t = unsigned(i);
                fiber.place = {{t % block[0], t / block[0] % block[1], t / block[0] / block[1]},
                               {at % grid[0], at / grid[0] % grid[1], at / grid[0] / grid[1]},
                               {block[0], block[1], block[2]},
                               {grid[0], grid[1], grid[2]}};
                fiber.state = State::Ready;
                fiber.file = nullptr;
                fiber.line = 0;
                fiber.parity = 0;
                fiber.warp = int(t / 32);
                fiber.lane = int(t % 32);
                fiber.groups = 0;
                fiber.copies.clear();
                prepare(fiber, device.stacks + i * STACK);
            }
            run_block(warp_order, lane_order);
            for (const Fiber& fiber : device.fibers) {
                if (!fiber.copies.empty()) {
                    describe("an asynchronous copy that nobody waited for", fiber);
                    siglongjmp(device.escape, 1);
                }
            }
        }
    } else {
        error = device.error;
    }
    device.current = nullptr;
    munmap(memory, room + page);
    return error;
}

// How many pieces of 16 bytes this thread's last launch has copied to shared memory in the background.
extern "C" __attribute__((visibility("default"))) uint64_t cloze_copied() { return emulator::device.copied; }
