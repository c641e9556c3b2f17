/* Products of rows with weights that lie in the order in which they are read, called through ctypes as kernel.c is.

   One panel of weights serves all rows before the next is read, and several rows at once, whose sums stay in registers.
   Every row's sums are made in the same order, so a row's result does not depend on the others. */

#include "lanes.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define PANEL 32                   /* outputs whose weights lie together */
#define HIGH ((int32_t)0xFFFF0000) /* the later number of a pair of bfloat16 */
#if defined(__AVX512F__)
#define ROWS 12 /* that are served at once: two vectors of sums each */
#elif defined(__AVX__)
#define ROWS 2
#else
#define ROWS 4
#endif

/* Add what is to be added to the sums of one row and panel, and store them. */
INLINE void finish(const Linear *job, int64_t panel, int64_t row, const lanes *sums, int kind) {
    const int64_t column = panel * PANEL, at = row * job->outputs + column;
    if (job->outputs - column >= PANEL) {
        for (int half = 0; half < 2; half++) {
            lanes sum = sums[half];
            if (job->bias) sum += load(job->bias, column + half * LANES, kind);
            if (job->residual) sum += load(job->residual, at + half * LANES, kind);
            store(job->out, at + half * LANES, sum, kind);
        }
        return;
    }
    for (int64_t i = 0; i < job->outputs - column; i++) {
        float sum = sums[i / LANES][i % LANES];
        if (job->bias) sum += one(job->bias, column + i, kind);
        if (job->residual) sum += one(job->residual, at + i, kind);
        store_one(job->out, at + i, sum, kind);
    }
}

/* `rows` rows from `first` on times one panel. Every row's sums are made in the same order, whatever runs beside it. */
INLINE void product(const Linear *job, int64_t panel, int64_t first, const int rows, const int kind) {
    const int64_t K = job->width;
    lanes sums[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = all(0.0f);
    if (kind == FLOAT) {
        const float *weight = (const float *)job->weight + panel * K * PANEL, *x[ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) x[r] = (const float *)job->x + (first + r) * K;
        for (int64_t k = 0; k < K; k++) {
            const lanes left = *(const loose_lanes *)(weight + k * PANEL);
            const lanes right = *(const loose_lanes *)(weight + k * PANEL + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                const lanes factor = all(x[r][k]);
                sums[r][0] += factor * left;
                sums[r][1] += factor * right;
            }
        }
    } else {
        const uint32_t *weight = (const uint32_t *)job->weight + panel * (K / 2) * PANEL;
        const uint16_t *x[ROWS];
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) x[r] = (const uint16_t *)job->x + (first + r) * K;
        for (int64_t k = 0; k < K / 2; k++) {
            const whole_lanes left = *(const loose_whole_lanes *)(weight + k * PANEL);
            const whole_lanes right = *(const loose_whole_lanes *)(weight + k * PANEL + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x[r] + 2 * k, sizeof pair);
#if defined(__AVX512BF16__)
                const __m512i factors = _mm512_set1_epi32(pair);
                sums[r][0] = (lanes)_mm512_dpbf16_ps((__m512)sums[r][0], (__m512bh)factors, (__m512bh)left);
                sums[r][1] = (lanes)_mm512_dpbf16_ps((__m512)sums[r][1], (__m512bh)factors, (__m512bh)right);
#else
                const whole_lanes factors = pair - (whole_lanes){0};
                const lanes low = (lanes)(factors << 16), high = (lanes)(factors & HIGH);
                sums[r][0] += low * (lanes)(left << 16);
                sums[r][0] += high * (lanes)(left & HIGH);
                sums[r][1] += low * (lanes)(right << 16);
                sums[r][1] += high * (lanes)(right & HIGH);
#endif
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) finish(job, panel, first + r, sums[r], kind);
}

/* Take one panel after the other until none is left; several threads may. */
static void linear_some(void *given) {
    Linear *job = given;
    const int64_t panels = (job->outputs + PANEL - 1) / PANEL, whole = job->rows - job->rows % ROWS;
    int64_t panel;
    while ((panel = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < panels) {
        for (int64_t row = 0; row < whole; row += ROWS)
            if (job->kind == FLOAT)
                product(job, panel, row, ROWS, FLOAT);
            else
                product(job, panel, row, ROWS, BFLOAT16);
        int64_t row = whole;
#define SOME(count)                                      \
    for (; job->rows - row >= count; row += count)       \
        if (job->kind == FLOAT)                          \
            product(job, panel, row, count, FLOAT);    \
        else                                             \
            product(job, panel, row, count, BFLOAT16);
#if ROWS > 8
        SOME(8)
#endif
#if ROWS > 4
        SOME(4)
#endif
        SOME(2)
        SOME(1)
#undef SOME
    }
}

void linear(Linear *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(linear_some, job, parallel, threads);
}

/* Lay weights [outputs, width] out in panels; what is missing of the last one becomes 0. */
typedef struct {
    const void *weight;
    void *packed;
    int64_t outputs, width;
    int32_t kind, next;
} Packing;

static void pack_some(void *given) {
    Packing *job = given;
    const int64_t panels = (job->outputs + PANEL - 1) / PANEL, K = job->width;
    int64_t panel;
    while ((panel = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < panels) {
        const int64_t first = panel * PANEL, count = job->outputs - first < PANEL ? job->outputs - first : PANEL;
        if (job->kind == FLOAT) {
            float *to = (float *)job->packed + panel * K * PANEL;
            const uint32_t *from = (const uint32_t *)job->weight + first * K;
            if (count < PANEL) memset(to, 0, (size_t)(K * PANEL) * 4);
            for (int64_t k = 0; k < K; k++)
                for (int64_t n = 0; n < count; n++) ((uint32_t *)to)[k * PANEL + n] = from[n * K + k];
        } else { /* a pair of numbers is moved as one of twice the width */
            uint32_t *to = (uint32_t *)job->packed + panel * (K / 2) * PANEL;
            const char *from = (const char *)job->weight + first * K * 2;
            if (count < PANEL) memset(to, 0, (size_t)(K / 2 * PANEL) * 4);
            for (int64_t k = 0; k < K / 2; k++)
                for (int64_t n = 0; n < count; n++) memcpy(to + k * PANEL + n, from + (n * K + 2 * k) * 2, 4);
        }
    }
}

void pack(Packing *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(pack_some, job, parallel, threads);
}
