/* Products of rows with weights that lie in the order in which they are read, called through ctypes as kernel.c is.

   One panel of weights serves all rows before the next is read, and several rows at once, whose sums stay in registers.
   Every row's sums are made in the same order, so a row's result does not depend on the others. */

#include "steps.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#define PANEL 32                   /* outputs whose weights lie together */
#define HIGH ((int32_t)0xFFFF0000) /* the later number of a pair of bfloat16 */
#define STRETCH 128                /* numbers of a row that are made floats at a time */
#define PARTS(rows) (PANEL / LANES == 2 || (rows) > 3 ? 2 : 4)

/* The weights that are wanted after these, called from memory bit by bit: products of many rows would wait for them. */
typedef struct {
    const char *from;
    int64_t step; /* bytes for each number of a row */
} Ahead;

/* Add what is to be added to the sums of one row and some outputs, and store them. */
static void finish(const Linear *job, int64_t column, int64_t row, const float *sums, int count, int kind) {
    for (int done = 0; done < count; done += LANES) {
        const int64_t first = column + done, at = row * job->outputs + first;
        if (job->outputs - first >= LANES) {
            lanes sum = *(const loose_lanes *)(sums + done);
            if (job->bias) sum += load(job->bias, first, kind);
            if (job->residual) sum += load(job->residual, at, kind);
            store(job->out, at, sum, kind);
            continue;
        }
        for (int64_t i = 0; i < job->outputs - first; i++) {
            float sum = sums[done + i];
            if (job->bias) sum += one(job->bias, first + i, kind);
            if (job->residual) sum += one(job->residual, at + i, kind);
            store_one(job->out, at + i, sum, kind);
        }
    }
}

#if !defined(__AVX512BF16__)
static void widen(const uint16_t *x, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = one(x, i, BFLOAT16);
}
#endif

/* `rows` rows from `first` on times `parts` vectors of a panel's outputs from `column` on, whose weights are at `k = 0`.
   Every row's sums are made in the same order, whatever runs beside it. */
INLINE void product(const Linear *job, int64_t panel, int column, int64_t first, const int rows, const int parts,
                    const int kind, Ahead *ahead) {
    const int64_t K = job->width, step = ahead->step;
    const char *const wanted = ahead->from;
    ahead->from += K * step;
    lanes sums[ROWS][4];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int p = 0; p < parts; p++) sums[r][p] = all(0.0f);
    if (kind == FLOAT) {
        const float *weight = (const float *)job->weight + panel * K * PANEL + column;
        const float *x = (const float *)job->x + first * K;
        for (int64_t k = 0; k < K; k++) {
            lanes some[4];
            __builtin_prefetch(wanted + k * step, 0, 2);
#pragma GCC unroll 4
            for (int p = 0; p < parts; p++) some[p] = *(const loose_lanes *)(weight + k * PANEL + p * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                const lanes factor = all(x[r * K + k]);
#pragma GCC unroll 4
                for (int p = 0; p < parts; p++) sums[r][p] += factor * some[p];
            }
        }
    } else {
        const uint32_t *weight = (const uint32_t *)job->weight + panel * (K / 2) * PANEL + column;
        const uint16_t *x = (const uint16_t *)job->x + first * K;
#if defined(__AVX512BF16__)
        for (int64_t k = 0; k < K / 2; k++) {
            whole_lanes some[4];
            __builtin_prefetch(wanted + 2 * k * step, 0, 2);
#pragma GCC unroll 4
            for (int p = 0; p < parts; p++) some[p] = *(const loose_whole_lanes *)(weight + k * PANEL + p * LANES);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * K + 2 * k, sizeof pair);
                const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
                for (int p = 0; p < parts; p++)
                    sums[r][p] = (lanes)_mm512_dpbf16_ps((__m512)sums[r][p], factors, (__m512bh)some[p]);
            }
        }
#else
        for (int64_t from = 0; from < K; from += STRETCH) {
            const int64_t length = K - from < STRETCH ? K - from : STRETCH;
            float factors[ROWS][STRETCH];
            for (int r = 0; r < rows; r++) widen(x + r * K + from, factors[r], length);
            for (int64_t k = 0; k < length / 2; k++) {
                const uint32_t *pairs = weight + (from / 2 + k) * PANEL;
                __builtin_prefetch(wanted + (from + 2 * k) * step, 0, 2);
                /* The earlier numbers of the pairs, then the later ones: both at once would not fit the registers. */
#pragma GCC unroll 2
                for (int later = 0; later < 2; later++) {
                    lanes some[4];
#pragma GCC unroll 4
                    for (int p = 0; p < parts; p++) {
                        const whole_lanes both = *(const loose_whole_lanes *)(pairs + p * LANES);
                        some[p] = later ? (lanes)(both & HIGH) : (lanes)(both << 16);
                    }
#pragma GCC unroll 12
                    for (int r = 0; r < rows; r++) {
                        const lanes factor = all(factors[r][2 * k + later]);
#pragma GCC unroll 4
                        for (int p = 0; p < parts; p++) sums[r][p] += factor * some[p];
                    }
                }
            }
        }
#endif
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        float held[PANEL];
#pragma GCC unroll 4
        for (int p = 0; p < parts; p++) *(loose_lanes *)(held + p * LANES) = sums[r][p];
        finish(job, panel * PANEL + column, first + r, held, parts * LANES, kind);
    }
}

/* `rows` rows from `first` on times one panel. */
INLINE void panel_product(const Linear *job, int64_t panel, int64_t first, const int rows, Ahead *ahead) {
    for (int column = 0; column < PANEL; column += PARTS(rows) * LANES)
        if (job->kind == FLOAT)
            product(job, panel, column, first, rows, PARTS(rows), FLOAT, ahead);
        else
            product(job, panel, column, first, rows, PARTS(rows), BFLOAT16, ahead);
}

/* What to call for while all rows are multiplied by one panel: the next, by then in the nearer memory. A few rows are
   done before it could come, and the processor itself sees that one panel follows the other. */
static Ahead ahead_of(const Linear *job, int64_t next, int64_t panels) {
    const int64_t bytes = job->width * PANEL * (job->kind == FLOAT ? 4 : 2);
    const int64_t passes = (job->rows + ROWS - 1) / ROWS * (PANEL / LANES / 2);
    const int known = next < panels && job->rows > ROWS;
    return (Ahead){(const char *)job->weight + (known ? next * bytes : 0), known ? bytes / job->width / passes + 1 : 0};
}

/* Take one panel after the other until none is left; several threads may. */
static void linear_some(void *given) {
    Linear *job = given;
    const int64_t panels = (job->outputs + PANEL - 1) / PANEL;
    int64_t panel = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED), next;
    for (; panel < panels; panel = next) {
        int64_t row = 0;
        next = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
        Ahead ahead = ahead_of(job, next, panels);
#define SOME(count) \
    for (; job->rows - row >= count; row += count) panel_product(job, panel, row, count, &ahead);
        SOME(ROWS)
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
