// Stands in for cuBLAS and cuBLASLt: the calls that cloze and candle make, added up in f32 (f64 for f64), by columns as the
// libraries count. What their documentation does not allow is refused; a matrix that reaches beyond its allocation ends the
// program. Also for cuRAND, of which only generators are made here.
#include "driver.h"
#include "emulator.h"

#include <stdlib.h>

#include <algorithm>
#include <functional>
#include <set>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// One build for each generation of processors, chosen when the program starts.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), optimize("O3")))
#else
#define FAST
#endif

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_FAST_TF32 = 77 };

size_t size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

template <class T>
double number(const void* at, size_t i) {
    return double(static_cast<const T*>(at)[i]);
}
double element(const void* at, size_t i, int type) {
    switch (type) {
        case R_64F: return number<double>(at, i);
        case R_16F: return number<__half>(at, i);
        case R_16BF: return number<__nv_bfloat16>(at, i);
        default: return number<float>(at, i);
    }
}
void put(void* at, size_t i, int type, double value) {
    switch (type) {
        case R_64F: static_cast<double*>(at)[i] = value; break;
        case R_16F: static_cast<__half*>(at)[i] = float(value); break;
        case R_16BF: static_cast<__nv_bfloat16*>(at)[i] = float(value); break;
        default: static_cast<float*>(at)[i] = float(value);
    }
}
// To the nearest number of 10 bits behind the point, ties to even.
float tf32(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) return x;
    bits += 0x0FFFu + ((bits >> 13) & 1u);
    return __uint_as_float(bits & ~0x1FFFu);
}

// A matrix as the libraries are told of it.
struct Matrix {
    const void* at;
    int type;
    int64_t rows, columns, ld;
    bool transposed = false;

    bool fits() const { return rows >= 0 && columns >= 0 && ld >= std::max<int64_t>(1, rows); }
    size_t bytes() const {
        if (rows == 0 || columns == 0) return 0;
        return (size_t(ld) * size_t(columns - 1) + size_t(rows)) * size_of(type);
    }
    void check(const char* what) const {
        gpu::must_be_live(at, bytes(), what);
        if (reinterpret_cast<uintptr_t>(at) % size_of(type) != 0) gpu::die("%s: not at a multiple of its elements' size", what);
    }
    // What the documentation asks of matrices that are only known by a table, where the matrix unit takes part.
    void check_in_table(int64_t k, const char* what) const {
        const int64_t piece = type == R_32F ? 4 : 8;
        const uintptr_t alignment = k % piece == 0 ? 16 : k % 2 == 0 ? 4 : 1;
        if (reinterpret_cast<uintptr_t>(at) % alignment != 0) {
            gpu::die("%s of a table: with sums over %lld it must lie at a multiple of %zu", what, (long long)k, size_t(alignment));
        }
    }
};

struct Product {
    Matrix a, b, c;
    int64_t m, n, k;
    double alpha, beta;
    bool rounds;
    // cuBLASLt's: added to every column of c, or given the sums of b's columns.
    const void* bias = nullptr;
    void* sums = nullptr;
    int vector_type = R_32F;
};

// Operand `x` as `rows` x `columns` without gaps, by columns.
template <class T>
std::vector<T> packed(const Matrix& x, int64_t rows, int64_t columns, bool rounds) {
    std::vector<T> out(size_t(rows * columns));
    for (int64_t j = 0; j < columns; j++) {
        for (int64_t i = 0; i < rows; i++) {
            const int64_t from = x.transposed ? j + i * x.ld : i + j * x.ld;
            const T value = T(element(x.at, size_t(from), x.type));
            out[size_t(i + j * rows)] = rounds ? T(tf32(float(value))) : value;
        }
    }
    return out;
}

// out (m, n) = a (m, k) b (k, n), all by columns and without gaps.
#define MULTIPLY(T, name)                                                                          \
    FAST void name(T* out, const T* a, const T* b, int64_t m, int64_t n, int64_t k) {              \
        constexpr int64_t ROWS = 256;                                                              \
        for (int64_t top = 0; top < m; top += ROWS) {                                              \
            const int64_t rows = std::min(ROWS, m - top);                                          \
            for (int64_t j = 0; j < n; j += 4) {                                                   \
                T sums[4][ROWS] = {};                                                              \
                const int64_t columns = std::min<int64_t>(4, n - j);                               \
                const T* column[4];                                                                \
                for (int64_t c = 0; c < 4; c++) column[c] = b + (j + std::min(c, columns - 1)) * k; \
                for (int64_t l = 0; l < k; l++) {                                                  \
                    const T* x = a + top + l * m;                                                  \
                    const T y0 = column[0][l], y1 = column[1][l], y2 = column[2][l], y3 = column[3][l]; \
                    for (int64_t i = 0; i < rows; i++) {                                           \
                        sums[0][i] += x[i] * y0;                                                   \
                        sums[1][i] += x[i] * y1;                                                   \
                        sums[2][i] += x[i] * y2;                                                   \
                        sums[3][i] += x[i] * y3;                                                   \
                    }                                                                              \
                }                                                                                  \
                for (int64_t c = 0; c < columns; c++) {                                            \
                    for (int64_t i = 0; i < rows; i++) out[top + i + (j + c) * m] = sums[c][i];    \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }
MULTIPLY(float, multiply_f32)
MULTIPLY(double, multiply_f64)
#undef MULTIPLY

void multiply(float* out, const float* a, const float* b, int64_t m, int64_t n, int64_t k) { multiply_f32(out, a, b, m, n, k); }
void multiply(double* out, const double* a, const double* b, int64_t m, int64_t n, int64_t k) { multiply_f64(out, a, b, m, n, k); }

template <class T>
void run(const Product& p) {
    const std::vector<T> a = packed<T>(p.a, p.m, p.k, p.rounds), b = packed<T>(p.b, p.k, p.n, p.rounds);
    std::vector<T> out(size_t(p.m * p.n));
    multiply(out.data(), a.data(), b.data(), p.m, p.n, p.k);
    void* c = const_cast<void*>(p.c.at);
    for (int64_t j = 0; j < p.n; j++) {
        for (int64_t i = 0; i < p.m; i++) {
            const size_t at = size_t(i + j * p.c.ld);
            T value = T(p.alpha) * out[size_t(i + j * p.m)];
            // With a factor of 0, what is there is not read: it may be anything.
            if (p.beta != 0) value += T(p.beta) * T(element(c, at, p.c.type));
            if (p.bias) value += T(element(p.bias, size_t(i), p.vector_type));
            put(c, at, p.c.type, value);
        }
        if (p.sums) {
            T sum = 0;
            for (int64_t l = 0; l < p.k; l++) sum += T(element(p.b.at, size_t(p.b.transposed ? j + l * p.b.ld : l + j * p.b.ld), p.b.type));
            put(p.sums, size_t(j), p.vector_type, sum);
        }
    }
}
void run_any(const Product& p) {
    if (p.a.type == R_64F) run<double>(p);
    else run<float>(p);
}

// Whether these types go together: of the operands, the result and the arithmetic.
bool supported(int a, int b, int c, int compute) {
    if (a != b) return false;
    if (a == R_64F) return c == R_64F && compute == COMPUTE_64F;
    if (a == R_32F) return c == R_32F && (compute == COMPUTE_32F || compute == COMPUTE_FAST_TF32);
    return (a == R_16F || a == R_16BF) && (c == a || c == R_32F) && compute == COMPUTE_32F;
}

// --- cuBLAS ----------------------------------------------------------------------------------------------------------

struct Handle {
    void* stream = nullptr;
    int math = 0;
};
std::set<void*>& handles() {
    static auto* all = new std::set<void*>;
    return *all;
}

// The sizes and operands of a call, the same in all of them.
struct Call {
    void* handle;
    int transa, transb, m, n, k;
    const void *alpha, *beta;
    int atype, lda, btype, ldb, ctype, ldc, compute;
};

// Puts a product for each i below `count` into the stream; where its matrices are is told by `places`, when it runs.
typedef std::function<void(int, const void**, const void**, void**)> Places;
int product(const char* name, const Call& call, int count, const Places& places, bool known_now) {
    if (!gpu::has_context() || !handles().count(call.handle)) return NOT_INITIALIZED;
    const Handle& handle = *static_cast<Handle*>(call.handle);
    if (call.m < 0 || call.n < 0 || call.k < 0 || count < 0) return INVALID_VALUE;
    if (!supported(call.atype, call.btype, call.ctype, call.compute)) {
        gpu::explain("%s: no product of types %d and %d into %d in arithmetic %d", name, call.atype, call.btype, call.ctype, call.compute);
        return NOT_SUPPORTED;
    }
    Product p;
    p.m = call.m, p.n = call.n, p.k = call.k;
    p.a = {nullptr, call.atype, call.transa ? call.k : call.m, call.transa ? call.m : call.k, call.lda, call.transa != 0};
    p.b = {nullptr, call.btype, call.transb ? call.n : call.k, call.transb ? call.k : call.n, call.ldb, call.transb != 0};
    p.c = {nullptr, call.ctype, call.m, call.n, call.ldc};
    if (!p.a.fits() || !p.b.fits() || !p.c.fits()) {
        gpu::explain("%s: a leading dimension is less than the matrix is high (a %d, b %d, c %d)", name, call.lda, call.ldb, call.ldc);
        return INVALID_VALUE;
    }
    p.alpha = element(call.alpha, 0, call.compute == COMPUTE_64F ? R_64F : R_32F);
    p.beta = element(call.beta, 0, call.compute == COMPUTE_64F ? R_64F : R_32F);
    // CUBLAS_TF32_TENSOR_OP_MATH
    p.rounds = call.compute == COMPUTE_FAST_TF32 || (handle.math == 3 && call.atype == R_32F);
    if (call.m == 0 || call.n == 0 || count == 0) return SUCCESS;
    gpu::Stream* stream = gpu::stream_of(handle.stream);
    if (!stream) return NOT_INITIALIZED;
    auto find = [=](int i) {
        Product one = p;
        void* c;
        places(i, &one.a.at, &one.b.at, &c);
        one.c.at = c;
        one.a.check("a product's a");
        one.b.check("a product's b");
        one.c.check("a product's c");
        if (!known_now && (p.rounds || size_of(p.a.type) == 2)) {
            one.a.check_in_table(p.k, "a product's a");
            one.b.check_in_table(p.k, "a product's b");
            one.c.check_in_table(p.k, "a product's c");
        }
        return one;
    };
    std::vector<Product> found;
    if (known_now) {
        for (int i = 0; i < count; i++) found.push_back(find(i));
    }
    gpu::enqueue(stream, [=] {
        for (int i = 0; i < count; i++) run_any(known_now ? found[size_t(i)] : find(i));
    });
    return SUCCESS;
}

const void* beyond(const void* at, int64_t elements, int type) {
    return static_cast<const char*>(at) + elements * int64_t(size_of(type));
}

}  // namespace

EXPORT int cublasCreate_v2(void** out) {
    if (!gpu::has_context()) return NOT_INITIALIZED;
    *out = new Handle;
    handles().insert(*out);
    return SUCCESS;
}
EXPORT int cublasDestroy_v2(void* handle) {
    if (!handles().erase(handle)) return NOT_INITIALIZED;
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
EXPORT int cublasSetStream_v2(void* handle, void* stream) {
    if (!handles().count(handle) || !gpu::stream_of(stream)) return NOT_INITIALIZED;
    static_cast<Handle*>(handle)->stream = stream;
    return SUCCESS;
}
EXPORT int cublasSetMathMode(void* handle, int mode) {
    if (!handles().count(handle)) return NOT_INITIALIZED;
    static_cast<Handle*>(handle)->math = mode;
    return SUCCESS;
}
EXPORT int cublasGemmStridedBatchedEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a,
                                      int atype, int lda, long long stridea, const void* b, int btype, int ldb,
                                      long long strideb, const void* beta, void* c, int ctype, int ldc, long long stridec,
                                      int count, int compute, int) {
    return product(
        "cublasGemmStridedBatchedEx",
        {handle, transa, transb, m, n, k, alpha, beta, atype, lda, btype, ldb, ctype, ldc, compute}, count,
        [=](int i, const void** at, const void** bt, void** ct) {
            *at = beyond(a, i * stridea, atype);
            *bt = beyond(b, i * strideb, btype);
            *ct = const_cast<void*>(beyond(c, i * stridec, ctype));
        },
        true);
}
EXPORT int cublasGemmEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* a, int atype,
                        int lda, const void* b, int btype, int ldb, const void* beta, void* c, int ctype, int ldc, int compute,
                        int algorithm) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, atype, lda, 0, b, btype, ldb, 0, beta, c, ctype,
                                      ldc, 0, 1, compute, algorithm);
}
// The tables of addresses are the device's: what is in them is known when the stream has come so far.
EXPORT int cublasGemmBatchedEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha,
                               const void* const* a, int atype, int lda, const void* const* b, int btype, int ldb,
                               const void* beta, void* const* c, int ctype, int ldc, int count, int compute, int) {
    if (count > 0) {
        for (const void* table : {static_cast<const void*>(a), static_cast<const void*>(b), static_cast<const void*>(c)}) {
            gpu::must_be_live(table, size_t(count) * sizeof(void*), "a table of matrices");
        }
    }
    return product(
        "cublasGemmBatchedEx", {handle, transa, transb, m, n, k, alpha, beta, atype, lda, btype, ldb, ctype, ldc, compute},
        count,
        [=](int i, const void** at, const void** bt, void** ct) {
            *at = a[i];
            *bt = b[i];
            *ct = c[i];
        },
        false);
}
EXPORT int cublasDgemmStridedBatched(void* handle, int transa, int transb, int m, int n, int k, const double* alpha,
                                     const double* a, int lda, long long stridea, const double* b, int ldb, long long strideb,
                                     const double* beta, double* c, int ldc, long long stridec, int count) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, a, R_64F, lda, stridea, b, R_64F, ldb, strideb, beta,
                                      c, R_64F, ldc, stridec, count, COMPUTE_64F, -1);
}

// --- cuBLASLt --------------------------------------------------------------------------------------------------------

namespace {

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t ld;
};

enum Epilogue : uint32_t { DEFAULT = 1, BIAS = 4, BGRADB = 512 };

struct Description {
    int compute, scale;
    int transa = 0, transb = 0;
    uint32_t epilogue = DEFAULT;
    uint64_t vector = 0;
    int vector_type = -1;
};

struct Preference {
    uint64_t workspace = 0;
    // Of a, b, c and d.
    uint32_t alignment[4] = {256, 256, 256, 256};
};

// What an algorithm was chosen for, in the 64 bytes that it may take.
struct Algorithm {
    uint64_t magic;
    uint32_t alignment[4];
    uint64_t workspace;
    uint32_t vector_alignment;
    uint32_t shape;
};
static_assert(sizeof(Algorithm) <= 64);
constexpr uint64_t MAGIC = 0x454D554C41544544;

struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

uint64_t alignment_of(uint64_t address, uint64_t most) {
    uint64_t alignment = 1;
    while (alignment < most && address % (2 * alignment) == 0) alignment *= 2;
    return alignment;
}

// Of everything that an algorithm depends on.
uint32_t shape_of(const Description& d, const Layout* const (&layouts)[4]) {
    uint64_t hash = 1469598103934665603u;
    auto add = [&](uint64_t x) { hash = (hash ^ x) * 1099511628211u; };
    for (uint64_t x : {uint64_t(d.compute), uint64_t(d.transa), uint64_t(d.transb), uint64_t(d.epilogue), uint64_t(d.vector_type)}) add(x);
    for (const Layout* layout : layouts) {
        for (uint64_t x : {uint64_t(layout->type), layout->rows, layout->columns, uint64_t(layout->ld)}) add(x);
    }
    return uint32_t(hash >> 32);
}

Matrix matrix(const Layout& layout, const void* at, bool transposed) {
    return {at, layout.type, int64_t(layout.rows), int64_t(layout.columns), layout.ld, transposed};
}

// Whether the library computes this at all, told if not.
int check(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& out) {
    const uint64_t m = d.transa ? a.columns : a.rows, k = d.transa ? a.rows : a.columns;
    const uint64_t n = d.transb ? b.rows : b.columns, other = d.transb ? b.columns : b.rows;
    const bool fit = k == other && c.rows == m && c.columns == n && out.rows == m && out.columns == n && out.ld == c.ld;
    for (const Layout* layout : {&a, &b, &c, &out}) {
        if (layout->rows == 0 || layout->columns == 0 || !matrix(*layout, nullptr, false).fits() || !fit) {
            gpu::explain("cublasLtMatmul: the matrices do not fit together");
            return INVALID_VALUE;
        }
    }
    const int vector_type = d.vector_type == -1 ? out.type : d.vector_type;
    if (d.scale != R_32F || c.type != out.type || !supported(a.type, b.type, c.type, d.compute)) {
        gpu::explain("cublasLtMatmul: no product of types %d and %d into %d", a.type, b.type, c.type);
        return NOT_SUPPORTED;
    }
    if (d.epilogue != DEFAULT && d.epilogue != BIAS && d.epilogue != BGRADB) {
        gpu::die("cublasLtMatmul: the epilogue %u is not in tests/cuda_host/blas.cpp", d.epilogue);
    }
    if (d.epilogue != DEFAULT && vector_type != out.type) {
        gpu::explain("cublasLtMatmul: the epilogue's vector is of type %d, the result of type %d", vector_type, out.type);
        return NOT_SUPPORTED;
    }
    return SUCCESS;
}

}  // namespace

EXPORT int cublasLtCreate(void** out) {
    if (!gpu::has_context()) return NOT_INITIALIZED;
    static char handle;
    *out = &handle;
    return SUCCESS;
}
EXPORT int cublasLtDestroy(void*) { return SUCCESS; }
EXPORT int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    *out = new Layout{type, rows, columns, ld};
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    *out = new Description{compute, scale};
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, size_t bytes) {
    Description& d = *static_cast<Description*>(description);
    void* at = nullptr;
    size_t size = 4;
    switch (attribute) {
        case 3: at = &d.transa; break;
        case 4: at = &d.transb; break;
        case 7: at = &d.epilogue; break;
        case 8: at = &d.vector, size = 8; break;
        case 26: at = &d.vector_type; break;
        default: gpu::die("cuBLASLt's attribute %d of a product is not in tests/cuda_host/blas.cpp", attribute);
    }
    if (bytes != size) return INVALID_VALUE;
    memcpy(at, value, size);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceCreate(void** out) {
    *out = new Preference;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    Preference& p = *static_cast<Preference*>(preference);
    if (attribute == 1 && bytes == 8) memcpy(&p.workspace, value, 8);
    else if (attribute >= 5 && attribute <= 8 && bytes == 4) memcpy(&p.alignment[attribute - 5], value, 4);
    else {
        gpu::explain("cuBLASLt's preference %d of %zu bytes", attribute, bytes);
        return INVALID_VALUE;
    }
    return SUCCESS;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void* description, void* a, void* b, void* c, void* out, void* preference, int most,
                                          Heuristic* results, int* count) {
    if (most < 1) return INVALID_VALUE;
    const Description& d = *static_cast<Description*>(description);
    const Preference& p = *static_cast<Preference*>(preference);
    const Layout* layouts[4] = {static_cast<Layout*>(a), static_cast<Layout*>(b), static_cast<Layout*>(c), static_cast<Layout*>(out)};
    *count = 0;
    if (const int refused = check(d, *layouts[0], *layouts[1], *layouts[2], *layouts[3])) return refused;
    for (int i = 0; i < 4; i++) {
        // Elements must lie at multiples of their size.
        if (p.alignment[i] % size_of(layouts[i]->type) != 0) return NOT_SUPPORTED;
    }
    // The library goes by where the vector is now.
    Algorithm algorithm = {MAGIC, {}, std::min<uint64_t>(p.workspace, 1 << 20), 0, shape_of(d, layouts)};
    std::copy(p.alignment, p.alignment + 4, algorithm.alignment);
    algorithm.vector_alignment = uint32_t(alignment_of(d.vector, 16));
    memset(results, 0, sizeof(*results));
    memcpy(results->algorithm, &algorithm, sizeof(algorithm));
    results->workspace = algorithm.workspace;
    *count = 1;
    return SUCCESS;
}
EXPORT int cublasLtMatmul(void*, void* description, const void* alpha, const void* a, void* layout_a, const void* b, void* layout_b,
                          const void* beta, const void* c, void* layout_c, void* out, void* layout_out, const void* algorithm,
                          void* workspace, size_t workspace_bytes, void* stream_handle) {
    if (!gpu::has_context()) return NOT_INITIALIZED;
    const Description& d = *static_cast<Description*>(description);
    const Layout* layouts[4] = {static_cast<Layout*>(layout_a), static_cast<Layout*>(layout_b), static_cast<Layout*>(layout_c),
                                static_cast<Layout*>(layout_out)};
    if (const int refused = check(d, *layouts[0], *layouts[1], *layouts[2], *layouts[3])) return refused;
    auto refused = [](const char* why) {
        gpu::explain("cublasLtMatmul: %s", why);
        return INVALID_VALUE;
    };
    Algorithm chosen;
    if (!algorithm) return refused("no algorithm is given, which is not emulated");
    memcpy(&chosen, algorithm, sizeof(chosen));
    if (chosen.magic != MAGIC || chosen.shape != shape_of(d, layouts)) return refused("the algorithm was chosen for another product");
    const void* matrices[4] = {a, b, c, out};
    for (int i = 0; i < 4; i++) {
        if (reinterpret_cast<uintptr_t>(matrices[i]) % chosen.alignment[i] != 0) {
            return refused("a matrix lies less aligned than the algorithm was chosen for");
        }
    }
    if (workspace_bytes < chosen.workspace) return refused("less workspace than the algorithm was chosen for");
    if (chosen.workspace) gpu::must_be_live(workspace, workspace_bytes, "cuBLASLt's workspace");
    Product p;
    p.a = matrix(*layouts[0], a, d.transa != 0);
    p.b = matrix(*layouts[1], b, d.transb != 0);
    p.c = matrix(*layouts[3], out, false);
    p.m = int64_t(layouts[3]->rows), p.n = int64_t(layouts[3]->columns);
    p.k = int64_t(d.transa ? layouts[0]->rows : layouts[0]->columns);
    p.alpha = element(alpha, 0, R_32F), p.beta = element(beta, 0, R_32F);
    p.rounds = d.compute == COMPUTE_FAST_TF32;
    if (p.beta != 0 && c != out) gpu::die("cublasLtMatmul: c that is not d is not emulated");
    p.a.check("a product's a");
    p.b.check("a product's b");
    p.c.check("a product's c");
    if (d.epilogue != DEFAULT) {
        void* vector = reinterpret_cast<void*>(d.vector);
        if (d.vector % chosen.vector_alignment != 0) return refused("the vector lies less aligned than the algorithm was chosen for");
        p.vector_type = layouts[3]->type;
        const size_t length = size_t(d.epilogue == BIAS ? p.m : p.n);
        gpu::must_be_live(vector, length * size_of(p.vector_type), "an epilogue's vector");
        if (d.epilogue == BIAS) p.bias = vector;
        else p.sums = vector;
    }
    gpu::Stream* stream = gpu::stream_of(stream_handle);
    if (!stream) return INVALID_VALUE;
    gpu::enqueue(stream, [p, work = chosen.workspace ? workspace : nullptr, bytes = chosen.workspace] {
        // What was there is gone.
        if (work) memset(work, 0xFF, bytes);
        run_any(p);
    });
    return SUCCESS;
}

// --- cuRAND ----------------------------------------------------------------------------------------------------------

EXPORT int curandCreateGenerator(void** out, int) {
    *out = malloc(1);
    return 0;
}
EXPORT int curandDestroyGenerator(void* generator) {
    free(generator);
    return 0;
}
EXPORT int curandSetStream(void*, void*) { return 0; }
EXPORT int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
