// What the stand-ins for NVIDIA's libraries share: memory that is checked, and streams that run late.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <functional>

namespace gpu {

struct Stream;

// Ends the program: what was asked for is undefined on a real device.
[[noreturn]] __attribute__((format(printf, 1, 2))) void die(const char* format, ...);
// Tells why a call is about to be refused.
__attribute__((format(printf, 1, 2))) void explain(const char* format, ...);

// Whether the calling thread has a context.
bool has_context();
// The stream of that handle; null if there is none.
Stream* stream_of(void* handle);
// Puts work into a stream. It runs when somebody waits for it, and not before: what it reads must last until then.
void enqueue(Stream* stream, std::function<void()> work);
// Dies unless these bytes belong to one live allocation. `what` names them.
void must_be_live(const void* start, size_t bytes, const char* what);

}  // namespace gpu
