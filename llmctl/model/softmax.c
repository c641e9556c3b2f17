/* Cross-entropy of rows of logits in one pass over memory, called through ctypes (native.py). */

#include "native.h"

/* The best build for this processor: 0 the plain one, 1 AVX2, 2 AVX-512, 3 with products of bfloat16. */
int level(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512bf16")) return 3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 1;
#endif
    return 0;
}

#define SHARE 16 /* rows that a thread takes at a time */

/* e^(number - largest) of a row, for which the cache holds it, to `weights` if that is not null; their sum. */
static float weigh(const float *row, int64_t width, float *weights, float *largest) {
    const int64_t whole = width - width % LANES;
    lanes most = all(row[0]), sum = all(0.0f);
    for (int64_t i = 0; i < whole; i += LANES) {
        const lanes x = *(const loose_lanes *)(row + i);
        most = chosen(x > most, x, most);
    }
    float peak = largest_of(most);
    for (int64_t i = whole; i < width; i++) peak = row[i] > peak ? row[i] : peak;
    for (int64_t i = 0; i < whole; i += LANES) {
        const lanes weight = exponential(*(const loose_lanes *)(row + i) - peak);
        if (weights) *(loose_lanes *)(weights + i) = weight;
        sum += weight;
    }
    float total = sum_of(sum);
    for (int64_t i = whole; i < width; i++) {
        const float weight = expf(row[i] - peak);
        if (weights) weights[i] = weight;
        total += weight;
    }
    *largest = peak;
    return total;
}

/* Take some rows after the others until none is left; several threads may. */
static void cross_entropy_some(void *given) {
    CrossEntropy *job = given;
    int64_t first;
    while ((first = SHARE * (int64_t)__atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->rows)
        for (int64_t row = first; row < first + SHARE && row < job->rows; row++) {
            const float *logits = job->logits + row * job->width, wanted = logits[job->targets[row]];
            float largest;
            job->sums[row] = weigh(logits, job->width, job->weights ? job->weights + row * job->width : 0, &largest);
            job->losses[row] = largest - wanted + logf(job->sums[row]);
        }
}

int cross_entropy(CrossEntropy *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(cross_entropy_some, job, parallel, threads);
    return 0;
}
