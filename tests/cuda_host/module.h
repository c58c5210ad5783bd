// How the stand-in for the driver finds the kernels of a compiled file and calls them.
#pragma once

#include <stddef.h>

#include <type_traits>
#include <utility>

namespace emulator {

struct Parameter {
    size_t size;
    bool is_pointer;
};

struct Kernel {
    const char* name;
    const Parameter* parameters;
    size_t count;
    // Calls the kernel; where each argument lies.
    void (*call)(void* const* arguments);
};

template <class Function, Function function>
struct Described;

template <class... T, void (*function)(T...)>
struct Described<void (*)(T...), function> {
    static constexpr Parameter parameters[] = {{sizeof(T), std::is_pointer<T>::value}...};

    template <size_t... i>
    static void spread(void* const* arguments, std::index_sequence<i...>) {
        function(*static_cast<typename std::remove_const<T>::type*>(arguments[i])...);
    }
    static void call(void* const* arguments) { spread(arguments, std::index_sequence_for<T...>()); }
    static constexpr Kernel of(const char* name) { return {name, parameters, sizeof...(T), call}; }
};
template <class... T, void (*function)(T...)>
constexpr Parameter Described<void (*)(T...), function>::parameters[];

}  // namespace emulator

#define CLOZE_KERNEL(name) emulator::Described<decltype(&name), &name>::of(#name),
