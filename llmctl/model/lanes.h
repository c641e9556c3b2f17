/* What all kernels of models have in common: as many numbers at a time as a register holds, in float whatever they are
   stored as. The code is compiled once for each kind of processor (setup.py), and the best that the machine runs is
   loaded (llmctl/model/native.py). */

#ifndef LLMCTL_LANES_H
#define LLMCTL_LANES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
/* A product makes as many rows at once as leave their sums, two vectors each (of few rows four), in registers. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 3
#endif

enum { FLOAT = 0, BFLOAT16 = 1, INT8 = 2 };

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float loose_lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t whole_lanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t half_lanes __attribute__((vector_size(2 * LANES)));
typedef uint16_t loose_half_lanes __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int32_t loose_whole_lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t loose_byte_lanes __attribute__((vector_size(LANES), aligned(1), may_alias));

INLINE lanes all(float value) { return value - (lanes){0}; }

INLINE lanes chosen(whole_lanes where, lanes yes, lanes no) {
    return (lanes)((where & (whole_lanes)yes) | (~where & (whole_lanes)no));
}

/* LANES numbers from place `at` on. */
INLINE lanes load(const void *from, int64_t at, int kind) {
    if (kind == FLOAT) return *(const loose_lanes *)((const float *)from + at);
    if (kind == INT8) return __builtin_convertvector(*(const loose_byte_lanes *)((const int8_t *)from + at), lanes);
    whole_lanes wide = __builtin_convertvector(*(const loose_half_lanes *)((const uint16_t *)from + at), whole_lanes);
    return (lanes)(wide << 16);
}

/* Store LANES numbers; to bfloat16 rounded to nearest, ties to even. */
INLINE void store(void *to, int64_t at, lanes x, int kind) {
    if (kind == FLOAT) {
        *(loose_lanes *)((float *)to + at) = x;
        return;
    }
    whole_lanes bits = (whole_lanes)x;
    whole_lanes rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    whole_lanes odd = x != x; /* rounding could make infinity of what is no number */
    rounded = (rounded & ~odd) | (odd & 0x7FC0);
    *(loose_half_lanes *)((uint16_t *)to + at) = __builtin_convertvector(rounded, half_lanes);
}

INLINE float one(const void *from, int64_t at, int kind) {
    if (kind == FLOAT) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void store_one(void *to, int64_t at, float value, int kind) {
    if (kind == FLOAT) {
        ((float *)to)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)to)[at] = value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

/* e^x to 2 units in the last place, 0 below -87; after Cephes' expf: x = n ln 2 + r, and a polynomial of r. */
INLINE lanes exponential(lanes x) {
    whole_lanes gone = x < -87.0f;
    x = chosen(gone, all(-87.0f), x);
    x = chosen(x > 88.0f, all(88.0f), x);
    lanes n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* 1.5 x 2^23: rounds to a whole number */
    lanes r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    lanes p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    whole_lanes power = (__builtin_convertvector(n, whole_lanes) + 127) << 23;
    return chosen(gone, all(0.0f), p * (lanes)power);
}

INLINE lanes hyperbolic_tangent(lanes x) { return 1.0f - 2.0f / (exponential(x * 2.0f) + 1.0f); }

INLINE float sum_of(lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

INLINE float largest_of(lanes x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
    return most;
}

typedef void (*Parallel)(void (*work)(void *), void *job, unsigned threads, unsigned flags); /* GOMP_parallel */

/* Let the threads of `parallel` work, or this one alone where there is none. */
INLINE void share(void (*work)(void *), void *job, Parallel parallel, unsigned threads) {
    if (parallel && threads > 1)
        parallel(work, job, threads, 0);
    else
        work(job);
}

#endif
