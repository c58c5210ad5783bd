// Checks that the stand-ins find the faults that they are there to find, and that their products are products.
// Usage: check MODULE, a file that bin/nvcc made of faults.cu
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuMemAllocAsync(uint64_t*, size_t, void*);
int cuMemFreeAsync(uint64_t, void*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemPoolGetAttribute(void*, int, void*);
int cuDeviceGetMemPool(void**, int);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cublasCreate_v2(void**);
int cublasSetStream_v2(void*, void*);
int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*, void*,
                 int, int, int, int);
int cublasLtMatrixLayoutCreate(void**, int, uint64_t, uint64_t, int64_t);
int cublasLtMatmulDescCreate(void**, int, int);
int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulPreferenceCreate(void**);
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t);
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int*);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*,
                   const void*, void*, size_t, void*);
}

namespace {

void *stream, *module;

void require(bool holds, const char* what) {
    if (holds) return;
    fprintf(stderr, "does not hold: %s\n", what);
    exit(1);
}
#define REQUIRE(condition) require(condition, #condition)

uint64_t memory(size_t bytes) {
    uint64_t at = 0;
    REQUIRE(cuMemAllocAsync(&at, bytes, stream) == 0);
    return at;
}
uint64_t memory_of(const std::vector<float>& values) {
    const uint64_t at = memory(values.size() * 4);
    REQUIRE(cuMemcpyHtoDAsync_v2(at, values.data(), values.size() * 4, stream) == 0);
    return at;
}
std::vector<float> values(uint64_t at, size_t count) {
    std::vector<float> all(count);
    REQUIRE(cuMemcpyDtoHAsync_v2(all.data(), at, count * 4, stream) == 0);
    return all;
}
void wait() { cuStreamSynchronize(stream); }

int launch(const char* name, uint64_t out, unsigned grid, unsigned block, unsigned shared, int allowed = 0) {
    void* kernel;
    REQUIRE(cuModuleGetFunction(&kernel, module, name) == 0);
    if (allowed) REQUIRE(cuFuncSetAttribute(kernel, 8, allowed) == 0);
    void* arguments[] = {&out};
    return cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, shared, stream, arguments, nullptr);
}

// Runs `fault` in a process of its own, which must end early and say so. The device's thread does not survive a fork: nothing
// may have waited for it before.
void dies(const char* complaint, const std::function<void()>& fault) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        fault();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char part[512];
    for (ssize_t n; (n = read(ends[0], part, sizeof(part))) > 0;) said.append(part, size_t(n));
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    if (!WIFSIGNALED(status) || said.find(complaint) == std::string::npos) {
        fprintf(stderr, "expected \"%s\", got: %s\n", complaint, said.c_str());
        exit(1);
    }
}

void start(const char* path) {
    void* context;
    REQUIRE(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
    REQUIRE(cuStreamCreate(&stream, 1) == 0);
    char image[4096] = {};
    FILE* file = fopen(path, "r");
    REQUIRE(file && fread(image, 1, sizeof(image) - 1, file) > 0);
    fclose(file);
    REQUIRE(cuModuleLoadData(&module, image) == 0);
}

void faults() {
    dies("kernel fault_past_the_end: access outside", [] { launch("fault_past_the_end", memory(64 * 4), 1, 64, 0), wait(); });
    dies("wrote beside", [] {
        const uint64_t at = memory(32 * 4);
        launch("fault_past_the_end", at, 1, 32, 0), cuMemFreeAsync(at, stream), wait();
    });
    dies("no live memory", [] {
        const uint64_t at = memory(64 * 4);
        cuMemFreeAsync(at, stream), launch("fault_none", at, 1, 64, 256);
    });
    dies("no live allocation", [] {
        const uint64_t at = memory(4);
        cuMemFreeAsync(at, stream), cuMemFreeAsync(at, stream);
    });
    dies("8 bytes from byte 0 of an allocation of 4", [] {
        const float two[2] = {};
        cuMemcpyHtoDAsync_v2(memory(4), two, 8, stream);
    });
    dies("a product's b: 16 bytes", [] {
        void* handle;
        const float one = 1, none = 0;
        const uint64_t a = memory(16), b = memory(12), c = memory(16);
        cublasCreate_v2(&handle), cublasSetStream_v2(handle, stream);
        cublasGemmEx(handle, 0, 0, 2, 2, 2, &one, (void*)a, 0, 2, (void*)b, 0, 2, &none, (void*)c, 0, 2, 68, -1);
    });
}

void rules() {
    const uint64_t out = memory(64 * 4);
    for (float x : values(out, 64)) REQUIRE(isnan(x));
    REQUIRE(launch("fault_none", out, 1, 64, 256) == 0);
    REQUIRE(values(out, 64)[0] == 63.0f);
    REQUIRE(launch("fault_none", out, 0, 64, 256) == 1);
    REQUIRE(launch("fault_none", out, 1, 2048, 256) == 1);
    REQUIRE(launch("fault_none", out, 1, 64, 40 << 10) == 0);
    REQUIRE(launch("fault_none", out, 1, 64, 48 << 10) == 1);
    REQUIRE(launch("fault_none", out, 1, 64, 49 << 10, 64 << 10) == 0);
    wait();

    // Work runs when it is waited for: what is pinned is read then, the rest at once.
    void* pinned;
    REQUIRE(cuMemHostAlloc(&pinned, 4, 0) == 0);
    float& late = *static_cast<float*>(pinned);
    float early = late = 1;
    const uint64_t a = memory(4), b = memory(4);
    cuMemcpyHtoDAsync_v2(a, &early, 4, stream);
    cuMemcpyHtoDAsync_v2(b, &late, 4, stream);
    early = late = 2;
    REQUIRE(values(a, 1)[0] == 1 && values(b, 1)[0] == 2);

    void* pool;
    uint64_t used, after;
    cuDeviceGetMemPool(&pool, 0);
    cuMemPoolGetAttribute(pool, 7, &used);
    const uint64_t large = memory(1 << 20);
    uint64_t refused;
    REQUIRE(cuMemAllocAsync(&refused, size_t(1) << 50, stream) == 2);
    cuMemPoolGetAttribute(pool, 7, &after);
    REQUIRE(after == used + (1 << 20));
    cuMemFreeAsync(large, stream);
    cuMemPoolGetAttribute(pool, 7, &after);
    REQUIRE(after == used);
    cuMemPoolGetAttribute(pool, 8, &after);
    REQUIRE(after == used + (1 << 20));
    wait();
}

// Column by column, with gaps, in every transposition.
void products() {
    void* handle;
    REQUIRE(cublasCreate_v2(&handle) == 0 && cublasSetStream_v2(handle, stream) == 0);
    const int m = 5, n = 7, k = 300;
    for (int transposed = 0; transposed < 4; transposed++) {
        const int ta = transposed & 1, tb = transposed >> 1;
        const int lda = (ta ? k : m) + 1, ldb = (tb ? n : k) + 2, ldc = m + 3;
        std::vector<float> a(size_t(lda * (ta ? m : k))), b(size_t(ldb * (tb ? k : n))), c(size_t(ldc * n), 1.0f);
        for (size_t i = 0; i < a.size(); i++) a[i] = float(int(i * 7 % 13) - 6);
        for (size_t i = 0; i < b.size(); i++) b[i] = float(int(i * 5 % 11) - 5);
        const uint64_t da = memory_of(a), db = memory_of(b), dc = memory_of(c);
        const float alpha = 2, beta = 3;
        auto gemm = [&](int ld) {
            return cublasGemmEx(handle, ta, tb, m, n, k, &alpha, (void*)da, 0, lda, (void*)db, 0, ldb, &beta, (void*)dc, 0, ld, 68, -1);
        };
        REQUIRE(gemm(m - 1) == 7 && gemm(ldc) == 0);
        const std::vector<float> found = values(dc, c.size());
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < ldc; i++) {
                float sum = 0;
                for (int l = 0; l < k && i < m; l++) {
                    sum += a[size_t(ta ? l + i * lda : i + l * lda)] * b[size_t(tb ? j + l * ldb : l + j * ldb)];
                }
                REQUIRE(found[size_t(i + j * ldc)] == (i < m ? 2 * sum + 3 : 1.0f));
            }
        }
    }
}

// A plan holds for its sizes and alignments only; the epilogues add a vector to the rows, or sum up b's columns.
void plans() {
    const uint64_t m = 2, n = 3, k = 2;
    const uint64_t a = memory_of({1, 2, 3, 4}), b = memory_of({1, 2, 3, 4, 5, 6}), c = memory(6 * 4), vector = memory_of({10, 20, 30});
    void *layout_a, *layout_b, *layout_c, *wishes;
    cublasLtMatrixLayoutCreate(&layout_a, 0, m, k, int64_t(m));
    cublasLtMatrixLayoutCreate(&layout_b, 0, k, n, int64_t(k));
    cublasLtMatrixLayoutCreate(&layout_c, 0, m, n, int64_t(m));
    cublasLtMatmulPreferenceCreate(&wishes);
    const uint32_t alignment = 256;
    for (int attribute = 5; attribute < 9; attribute++) cublasLtMatmulPreferenceSetAttribute(wishes, attribute, &alignment, 4);
    for (uint32_t epilogue : {4u, 512u}) {
        void* product;
        cublasLtMatmulDescCreate(&product, 68, 0);
        cublasLtMatmulDescSetAttribute(product, 7, &epilogue, 4);
        cublasLtMatmulDescSetAttribute(product, 8, &vector, 8);
        uint64_t result[16];
        int count;
        REQUIRE(cublasLtMatmulAlgoGetHeuristic(nullptr, product, layout_a, layout_b, layout_c, layout_c, wishes, 1, result, &count) == 0);
        REQUIRE(count == 1);
        const float one = 1, none = 0;
        auto run = [&](uint64_t at, void* layout) {
            return cublasLtMatmul(nullptr, product, &one, (void*)at, layout, (void*)b, layout_b, &none, (void*)c, layout_c, (void*)c,
                                  layout_c, result, nullptr, 0, stream);
        };
        void* wider;
        cublasLtMatrixLayoutCreate(&wider, 0, m, k, int64_t(m) + 1);
        REQUIRE(run(a + 4, layout_a) == 7 && run(a, wider) == 7 && run(a, layout_a) == 0);
        // Each column of the product is x (1, 2) + y (3, 4).
        const std::vector<float> plain = {7, 10, 15, 22, 23, 34}, found = values(c, 6), vectors = values(vector, 3);
        for (size_t i = 0; i < 6; i++) REQUIRE(found[i] == plain[i] + (epilogue == 4 ? (i % 2 ? 20.0f : 10.0f) : 0.0f));
        if (epilogue == 512) REQUIRE(vectors[0] == 3 && vectors[1] == 7 && vectors[2] == 11);
    }
}

}  // namespace

int main(int count, char** arguments) {
    REQUIRE(count == 2);
    start(arguments[1]);
    faults();
    rules();
    products();
    plans();
    puts("the stand-ins find the faults that they should");
}
