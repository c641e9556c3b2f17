/* Attention within the documents of packed rows, forward and backward, called through ctypes (native.py).

   A document is taken with one head of keys at a time, and its queries a block at a time: all scores of a block lie in
   one buffer, so that the softmax is that of the books. Only what a query sees is computed, but for what rounds a tile up.
   Every document is computed in the same order, whatever lies beside it. */

#include <stdlib.h>

#include "native.h"

#define BLOCK 48 /* queries; a multiple of ROWS */
#define LEAST (-3.0e38f)

/* `rows` x `parts` vectors of `out` (+)= a b, over `depth`. The numbers of a lie `down` apart from row to row and `along`
   within a row. */
INLINE void tile(const int rows, const int parts, const float *a, int64_t down, int64_t along, const float *b,
                 int64_t b_stride, float *out, int64_t out_stride, int64_t depth, int add) {
    lanes sums[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++)
            sums[r][p] = add ? (lanes)*(const loose_lanes *)(out + r * out_stride + p * LANES) : all(0.0f);
    for (int64_t k = 0; k < depth; k++) {
        lanes some[2];
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++) some[p] = *(const loose_lanes *)(b + k * b_stride + p * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            const lanes factor = all(a[r * down + k * along]);
#pragma GCC unroll 2
            for (int p = 0; p < parts; p++) sums[r][p] += factor * some[p];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int p = 0; p < parts; p++) *(loose_lanes *)(out + r * out_stride + p * LANES) = sums[r][p];
}

/* `tile` over all columns, a multiple of LANES; at most ROWS rows. */
static void product(int64_t rows, const float *a, int64_t down, int64_t along, const float *b, int64_t b_stride, float *out,
                    int64_t out_stride, int64_t columns, int64_t depth, int add) {
    for (int64_t r = 0; r < rows;) {
        const float *from = a + r * down;
        float *to = out + r * out_stride;
#define SOME(some)                                                                                                \
    if (rows - r >= some) {                                                                                       \
        int64_t c = 0;                                                                                            \
        for (; columns - c >= 2 * LANES; c += 2 * LANES)                                                          \
            tile(some,  2, from, down, along, b + c, b_stride, to + c, out_stride, depth, add);                   \
        if (c < columns) tile(some,  1, from, down, along, b + c, b_stride, to + c, out_stride, depth, add);      \
        r += some;                                                                                                \
        continue;                                                                                                 \
    }
        SOME(ROWS)
#if ROWS > 6
        SOME(6)
#endif
        SOME(3)
        SOME(1)
#undef SOME
    }
}

#define PANEL (2 * LANES) /* tokens that lie together in what is transposed */

static int64_t rounded(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }

/* `count` rows of x, `stride` numbers apart, as panels [width, PANEL]; what is missing of the last one becomes 0. */
static void transpose(const float *x, int64_t stride, int64_t width, int64_t count, float *out) {
    for (int64_t t = 0; t < rounded(count); t++)
        for (int64_t e = 0; e < width; e++)
            out[(t / PANEL * width + e) * PANEL + t % PANEL] = t < count ? x[t * stride + e] : 0.0f;
}

/* Products of `rows` rows of a [.., width] with the panels from token `start` to `end`, both whole panels. */
static void panels_product(int64_t rows, const float *a, int64_t down, const float *panels, float *out, int64_t out_stride,
                           int64_t start, int64_t end, int64_t width) {
    for (int64_t t = start; t < end; t += PANEL)
        product(rows, a, down, 1, panels + t * width, PANEL, out + t, out_stride, PANEL, width, 0);
}

/* What one thread works in, for a document of up to `longest` tokens. */
typedef struct {
    float *keys, *values;   /* transposed */
    float *scores, *slopes; /* [BLOCK, columns]; slopes: the scores' gradient */
} Scratch;

/* The first key that a query sees, counted in its document. */
INLINE int64_t seen_from(const Packed *job, int64_t query) {
    return job->window && query >= job->window ? query - job->window + 1 : 0;
}

/* Scores of the queries `first` to `first + count` of a document into scratch: each row group as far as it sees. */
static void score(const Packed *job, const Scratch *scratch, const float *q, int64_t first, int64_t count, int64_t columns) {
    const int64_t stride = job->heads * job->width, start = seen_from(job, first) / PANEL * PANEL;
    for (int64_t r = 0; r < count; r += ROWS) {
        const int64_t rows = count - r < ROWS ? count - r : ROWS, end = rounded(first + r + rows);
        panels_product(rows, q + (first + r) * stride, stride, scratch->keys, scratch->scores + r * columns, columns, start, end,
                       job->width);
    }
}

/* Scores from `start` to `end` that a query, which sees from `from` to `query`, does not see: as low as weighs nothing. */
static void hide(float *row, int64_t start, int64_t end, int64_t from, int64_t query) {
    for (int64_t j = start; j < from; j++) row[j] = LEAST;
    for (int64_t j = query + 1; j < end; j++) row[j] = LEAST;
}

/* Make weights e^(scale x score - peak) of a query's scores from `start` to `end`; their sum. */
static float weigh(float *row, int64_t start, int64_t end, float scale, float *peak) {
    lanes most = all(LEAST), sum = all(0.0f);
    for (int64_t j = start; j < end; j += LANES) {
        const lanes x = *(lanes *)(row + j);
        most = chosen(x > most, x, most);
    }
    *peak = largest_of(most) * scale;
    for (int64_t j = start; j < end; j += LANES) {
        const lanes x = exponential(*(lanes *)(row + j) * scale - *peak);
        *(lanes *)(row + j) = x;
        sum += x;
    }
    return sum_of(sum);
}

/* One document and one head of keys: what its queries mix. */
static void forward(const Packed *job, const Scratch *scratch, int64_t token, int64_t length, int64_t kv_head) {
    const int64_t E = job->width, G = job->value_width, H = job->heads, K = job->kv_heads, columns = rounded(length) + PANEL;
    const float *k = job->k + (token * K + kv_head) * E, *v = job->v + (token * K + kv_head) * G;
    transpose(k, K * E, E, length, scratch->keys);
    for (int64_t head = kv_head * (H / K); head < (kv_head + 1) * (H / K); head++)
        for (int64_t first = 0; first < length; first += BLOCK) {
            const int64_t count = length - first < BLOCK ? length - first : BLOCK;
            const int64_t start = seen_from(job, first) / PANEL * PANEL;
            score(job, scratch, job->q + (token * H + head) * E, first, count, columns);
            for (int64_t r = 0; r < count; r += ROWS) {
                const int64_t rows = count - r < ROWS ? count - r : ROWS, end = rounded(first + r + rows);
                float *out = job->out + ((token + first + r) * H + head) * G, sums[ROWS];
                for (int64_t i = 0; i < rows; i++) {
                    const int64_t query = first + r + i;
                    float peak, *row = scratch->scores + (r + i) * columns;
                    hide(row, start, end, seen_from(job, query), query);
                    sums[i] = weigh(row, start, end, job->scale, &peak);
                    job->norms[(token + query) * H + head] = peak + logf(sums[i]);
                }
                product(rows, scratch->scores + r * columns + start, columns, 1, v + start * K * G, K * G, out, H * G, G,
                        first + r + rows - start, 0);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t e = 0; e < G; e += LANES) *(loose_lanes *)(out + i * H * G + e) *= 1.0f / sums[i];
            }
        }
}

/* Make weights of a query's scores and, from the gradient of the weights, that of the scores. */
static void unweigh(float *row, float *slope, int64_t start, int64_t end, float scale, float norm, float mean) {
    for (int64_t j = start; j < end; j += LANES) {
        const lanes weight = exponential(*(lanes *)(row + j) * scale - norm);
        *(lanes *)(row + j) = weight;
        *(lanes *)(slope + j) = weight * (*(lanes *)(slope + j) - mean) * scale;
    }
}

/* Ask for `count` rows of `width` numbers that are to be read soon. */
INLINE void fetch(const float *x, int64_t stride, int64_t width, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t e = 0; e < width; e += 16) __builtin_prefetch(x + i * stride + e);
}

/* One document and one head of keys: gradients of its queries, keys and values (Dao 2022, arXiv:2205.14135, appendix B). */
static void backward(const Packed *job, const Scratch *scratch, int64_t token, int64_t length, int64_t kv_head) {
    const int64_t E = job->width, G = job->value_width, H = job->heads, K = job->kv_heads, columns = rounded(length) + PANEL;
    const float *k = job->k + (token * K + kv_head) * E, *v = job->v + (token * K + kv_head) * G;
    float *dk = job->k_grad + (token * K + kv_head) * E, *dv = job->v_grad + (token * K + kv_head) * G;
    transpose(k, K * E, E, length, scratch->keys);
    transpose(v, K * G, G, length, scratch->values);
    for (int64_t t = 0; t < length; t++) {
        memset(dk + t * K * E, 0, (size_t)E * sizeof *dk);
        memset(dv + t * K * G, 0, (size_t)G * sizeof *dv);
    }
    for (int64_t head = kv_head * (H / K); head < (kv_head + 1) * (H / K); head++)
        for (int64_t first = 0; first < length; first += BLOCK) {
            const int64_t count = length - first < BLOCK ? length - first : BLOCK;
            const int64_t start = seen_from(job, first) / PANEL * PANEL;
            const float *q = job->q + (token * H + head) * E;
            const float *out = job->out + ((token + first) * H + head) * G, *grad = job->grad + ((token + first) * H + head) * G;
            fetch(out, H * G, G, count);
            fetch(grad, H * G, G, count);
            score(job, scratch, q, first, count, columns);
            for (int64_t r = 0; r < count; r += ROWS) {
                const int64_t rows = count - r < ROWS ? count - r : ROWS, end = rounded(first + r + rows);
                float *slopes = scratch->slopes + r * columns;
                panels_product(rows, grad + r * H * G, H * G, scratch->values, slopes, columns, start, end, G);
                for (int64_t i = 0; i < rows; i++) {
                    const int64_t query = first + r + i;
                    lanes both = all(0.0f);
                    for (int64_t e = 0; e < G; e += LANES)
                        both += *(const loose_lanes *)(out + (r + i) * H * G + e) * *(const loose_lanes *)(grad + (r + i) * H * G + e);
                    float *row = scratch->scores + (r + i) * columns;
                    hide(row, start, end, seen_from(job, query), query);
                    unweigh(row, slopes + i * columns, start, end, job->scale, job->norms[(token + query) * H + head], sum_of(both));
                }
                product(rows, slopes + start, columns, 1, k + start * K * E, K * E, job->q_grad + ((token + first + r) * H + head) * E,
                        H * E, E, first + r + rows - start, 0);
            }
            for (int64_t j = start, keys; j < first + count; j += keys) { /* and the queries of the block that may see them */
                const int64_t end = j < first ? first : first + count, from = j < first ? 0 : j - first;
                keys = end - j < ROWS ? end - j : ROWS;
                product(keys, scratch->slopes + from * columns + j, 1, columns, q + (first + from) * H * E, H * E, dk + j * K * E, K * E,
                        E, count - from, 1);
                product(keys, scratch->scores + from * columns + j, 1, columns, grad + from * H * G, H * G, dv + j * K * G, K * G, G,
                        count - from, 1);
            }
        }
}

/* Padding: nothing is mixed, and nothing is learned. */
static void clear(const Packed *job, int64_t token, int64_t length, int64_t kv_head) {
    const int64_t E = job->width, G = job->value_width, H = job->heads, K = job->kv_heads, shared = H / K;
    for (int64_t t = token; t < token + length; t++) {
        if (!job->grad) {
            memset(job->out + (t * H + kv_head * shared) * G, 0, (size_t)(shared * G) * sizeof(float));
            continue;
        }
        memset(job->q_grad + (t * H + kv_head * shared) * E, 0, (size_t)(shared * E) * sizeof(float));
        memset(job->k_grad + (t * K + kv_head) * E, 0, (size_t)E * sizeof(float));
        memset(job->v_grad + (t * K + kv_head) * G, 0, (size_t)G * sizeof(float));
    }
}

/* Take one document and one head of keys after the other until none is left; several threads may. */
static void attend_some(void *given) {
    Packed *job = given;
    const int64_t columns = rounded(job->longest) + PANEL, tasks = job->documents * job->kv_heads;
    const int64_t numbers = (job->width + job->value_width + 2 * BLOCK) * columns;
    float *held = aligned_alloc(64, (size_t)(numbers * 4 + 63) / 64 * 64);
    if (!held) {
        job->failed = 1;
        return;
    }
    Scratch scratch = {held, held + job->width * columns, 0, 0};
    scratch.scores = scratch.values + job->value_width * columns;
    scratch.slopes = scratch.scores + BLOCK * columns;
    int64_t task;
    while ((task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < tasks) {
        const int64_t document = task / job->kv_heads, kv_head = task % job->kv_heads;
        const int64_t token = job->starts[document], length = job->starts[document + 1] - token;
        if (job->real[document])
            (job->grad ? backward : forward)(job, &scratch, token, length, kv_head);
        else
            clear(job, token, length, kv_head);
    }
    free(held);
}

/* 0, or 1 where memory was missing. */
int attend_packed(Packed *job, Parallel parallel, unsigned threads) {
    job->next = job->failed = 0;
    share(attend_some, job, parallel, threads);
    return job->failed;
}
