/* The steps between the matrix products of a model that answers on a CPU, called through ctypes on tensors' memory.

   Numbers are float or bfloat16, as the model has them; all arithmetic is in float. Nothing is allocated. kernel.py
   documents the functions, and the tests hold them against torch (tests/inference/test_kernel.py). */

#include "steps.h"

#define WIDEST 256 /* numbers of a head */
#define TOGETHER 8 /* queries that one pass over the keys serves */
#define STRETCH 128 /* tokens whose scores are made before their values are mixed */
#define LEAST (-3.0e38f)

/* The sums of LANES vectors, each in its lane: rounds in which two vectors become one. */
INLINE lanes sums_of(lanes *x) {
#define FOLD(count, step, ...)                                                                                       \
    for (int i = 0; i < count; i++) {                                                                                \
        whole_lanes first = {__VA_ARGS__}, second = first + step;                                                    \
        x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], first) + __builtin_shuffle(x[2 * i], x[2 * i + 1], second); \
    }
#if LANES == 16
    FOLD(8, 8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
    FOLD(4, 4, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
    FOLD(2, 2, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29)
    FOLD(1, 1, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#elif LANES == 8 /* in an order that takes one instruction for each shuffle */
    FOLD(4, 2, 0, 8, 1, 9, 4, 12, 5, 13)
    FOLD(2, 2, 0, 1, 8, 9, 4, 5, 12, 13)
    FOLD(1, 4, 0, 1, 2, 3, 8, 9, 10, 11)
#else
    FOLD(2, 2, 0, 1, 4, 5)
    FOLD(1, 1, 0, 2, 4, 6)
#endif
#undef FOLD
    return x[0];
}

/* Where the tokens from `from` on lie in the cache, the last one again behind it up to a whole number of LANES. */
INLINE void find_tokens(const Attention *job, const int32_t *table, int64_t from, int64_t count, int64_t bytes,
                        const char **tokens) {
    int64_t block = from / job->block, within = from % job->block;
    for (int64_t t = 0; t < count; t++) {
        tokens[t] = (const char *)job->data + (table[block] * job->block + within) * bytes;
        if (++within == job->block) within = 0, block++;
    }
    for (int64_t t = count; t % LANES; t++) tokens[t] = tokens[count - 1];
}

/* The scale of each of LANES heads of a cache in 8 bits. */
INLINE lanes scales_of(const Attention *job, const char **tokens, int64_t bytes, int64_t head) {
    lanes scales = all(1.0f);
    for (int t = 0; t < LANES; t++)
        scales[t] = job->scales[(tokens[t] - (const char *)job->data) / bytes * 2 * job->kv_heads + head];
    return scales;
}

/* The query heads `first` to `first + count` of one row, which share the keys and values of `kv_head`. */
INLINE void attend_heads(const Attention *job, int64_t row, int64_t kv_head, int64_t first, int count,
                         const int64_t width, const int kind, const int cache_kind) {
    const int64_t parts = width / LANES, seen = job->places[2 * row + 1];
    const int32_t *table = job->tables + job->places[2 * row] * job->table_width;
    const int64_t head = width * (cache_kind == FLOAT ? 4 : cache_kind == BFLOAT16 ? 2 : 1);
    const int64_t bytes = 2 * job->kv_heads * head, key = kv_head * head, value = key + job->kv_heads * head;
    lanes q[TOGETHER][WIDEST / LANES], mixed[TOGETHER][WIDEST / LANES], sums[TOGETHER], held[WIDEST];
    lanes scores[TOGETHER][STRETCH / LANES];
    float peaks[TOGETHER];
    const char *tokens[STRETCH];
    whole_lanes steps;
    for (int t = 0; t < LANES; t++) steps[t] = t;
    for (int g = 0; g < count; g++) {
        peaks[g] = LEAST;
        sums[g] = all(0.0f);
        for (int64_t c = 0; c < parts; c++) {
            q[g][c] = load(job->q, row * job->q_stride + (first + g) * width + c * LANES, kind) * job->scale;
            mixed[g][c] = all(0.0f);
        }
    }
    for (int64_t from = job->window && seen > job->window ? seen - job->window : 0; from < seen; from += STRETCH) {
        const int64_t some = seen - from < STRETCH ? seen - from : STRETCH, chunks = (some + LANES - 1) / LANES;
        find_tokens(job, table, from, some, bytes, tokens);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const char **those = tokens + chunk * LANES;
            const int64_t at = chunk * LANES;
            const whole_lanes visible = steps < (int32_t)(some - at);
            if (cache_kind != FLOAT)
                for (int t = 0; t < LANES; t++)
                    for (int64_t c = 0; c < parts; c++) held[t * parts + c] = load(those[t] + key, c * LANES, cache_kind);
            for (int g = 0; g < count; g++) {
                lanes products[LANES];
                for (int t = 0; t < LANES; t++) {
#define KEY(c) (cache_kind == FLOAT ? load(those[t] + key, (c) * LANES, FLOAT) : held[t * parts + (c)])
                    lanes sum = q[g][0] * KEY(0);
                    for (int64_t c = 1; c < parts; c++) sum += q[g][c] * KEY(c);
#undef KEY
                    products[t] = sum;
                }
                lanes score = sums_of(products);
                if (cache_kind == INT8) score *= scales_of(job, those, bytes, kv_head);
                if (job->softcap != 0.0f) score = job->softcap * hyperbolic_tangent(score / job->softcap);
                if (job->slopes)
                    score -= job->slopes[first + g] *
                             ((float)(seen - 1 - from - at) - __builtin_convertvector(steps, lanes));
                scores[g][chunk] = chosen(visible, score, all(LEAST));
            }
        }
        for (int g = 0; g < count; g++) {
            lanes most = scores[g][0];
            for (int64_t chunk = 1; chunk < chunks; chunk++)
                most = chosen(scores[g][chunk] > most, scores[g][chunk], most);
            const float top = largest_of(most);
            if (top > peaks[g]) {
                const lanes shrunk = exponential(all(peaks[g] - top));
                peaks[g] = top;
                sums[g] *= shrunk;
                for (int64_t c = 0; c < parts; c++) mixed[g][c] *= shrunk;
            }
            for (int64_t chunk = 0; chunk < chunks; chunk++) {
                scores[g][chunk] = exponential(scores[g][chunk] - peaks[g]);
                sums[g] += scores[g][chunk];
                if (cache_kind == INT8)
                    scores[g][chunk] *= scales_of(job, tokens + chunk * LANES, bytes, kv_head + job->kv_heads);
            }
        }
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const char **those = tokens + chunk * LANES;
            if (cache_kind != FLOAT)
                for (int t = 0; t < LANES; t++)
                    for (int64_t c = 0; c < parts; c++)
                        held[t * parts + c] = load(those[t] + value, c * LANES, cache_kind);
            for (int g = 0; g < count; g++)
                for (int64_t c = 0; c < parts; c += 4) {
                    const int64_t wide = parts - c < 4 ? parts - c : 4;
                    lanes sum[4];
                    for (int64_t i = 0; i < wide; i++) sum[i] = mixed[g][c + i];
                    for (int t = 0; t < LANES; t++) {
                        const lanes weight = all(((const float *)scores[g])[chunk * LANES + t]);
#define VALUE(c) (cache_kind == FLOAT ? load(those[t] + value, (c) * LANES, FLOAT) : held[t * parts + (c)])
                        for (int64_t i = 0; i < wide; i++) sum[i] += weight * VALUE(c + i);
#undef VALUE
                    }
                    for (int64_t i = 0; i < wide; i++) mixed[g][c + i] = sum[i];
                }
        }
    }
    for (int g = 0; g < count; g++) {
        float total = sum_of(sums[g]), kept = 1.0f;
        if (job->sinks) {
            const float top = job->sinks[first + g] > peaks[g] ? job->sinks[first + g] : peaks[g];
            kept = exponential(all(peaks[g] - top))[0];
            total = total * kept + exponential(all(job->sinks[first + g] - top))[0];
        }
        for (int64_t c = 0; c < parts; c++)
            store(job->out, (row * job->heads + first + g) * width + c * LANES, mixed[g][c] * (kept / total), kind);
    }
}

INLINE void attend_group(const Attention *job, int64_t row, int64_t kv_head, int64_t width, int kind, int cache_kind) {
    const int64_t shared = job->heads / job->kv_heads;
    for (int64_t first = 0; first < shared; first += TOGETHER) {
        const int count = shared - first < TOGETHER ? (int)(shared - first) : TOGETHER;
        attend_heads(job, row, kv_head, kv_head * shared + first, count, width, kind, cache_kind);
    }
}

/* Take one row and one head of keys after the other until none is left; several threads may. */
static void attend_some(void *given) {
    Attention *job = given;
    const int64_t count = job->rows * job->kv_heads;
    int64_t task;
    while ((task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < count) {
        const int64_t row = task / job->kv_heads, head = task % job->kv_heads;
#define KNOWN(size, type) /* loops of a length that the compiler knows take a third of the time */ \
    if (job->width == size && job->kind == type && job->cache_kind == type) {                     \
        attend_group(job, row, head, size, type, type);                                           \
        continue;                                                                                 \
    }
        KNOWN(32, FLOAT)
        KNOWN(64, FLOAT)
        KNOWN(128, FLOAT)
        KNOWN(32, BFLOAT16)
        KNOWN(64, BFLOAT16)
        KNOWN(128, BFLOAT16)
#undef KNOWN
        attend_group(job, row, head, job->width, job->kind, job->cache_kind);
    }
}

void attend(Attention *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(attend_some, job, parallel, threads);
}

/* x / sqrt(mean(x^2) + eps) * weight of each row of `width` numbers. */
void rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, float eps,
                          int32_t kind) {
    const int64_t whole = width - width % LANES;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t start = row * width;
        lanes squares = all(0.0f);
        for (int64_t i = 0; i < whole; i += LANES) {
            const lanes some = load(x, start + i, kind);
            squares += some * some;
        }
        float total = sum_of(squares);
        for (int64_t i = whole; i < width; i++) total += one(x, start + i, kind) * one(x, start + i, kind);
        const float scale = 1.0f / sqrtf(total / (float)width + eps);
        for (int64_t i = 0; i < whole; i += LANES)
            store(out, start + i, load(x, start + i, kind) * scale * load(weight, i, kind), kind);
        for (int64_t i = whole; i < width; i++)
            store_one(out, start + i, one(x, start + i, kind) * scale * one(weight, i, kind), kind);
    }
}

/* silu(gate) * up, of rows that hold gate and up behind one another. */
void gated(const void *joined, void *out, int64_t rows, int64_t width, int32_t kind) {
    const int64_t whole = width - width % LANES;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t gate = row * 2 * width, up = gate + width;
        for (int64_t i = 0; i < whole; i += LANES) {
            const lanes g = load(joined, gate + i, kind);
            store(out, row * width + i, g / (exponential(-g) + 1.0f) * load(joined, up + i, kind), kind);
        }
        for (int64_t i = whole; i < width; i++) {
            const float g = one(joined, gate + i, kind);
            store_one(out, row * width + i, g / (expf(-g) + 1.0f) * one(joined, up + i, kind), kind);
        }
    }
}

/* Turn the first `heads` heads of each row in place by the row's angles: x cos + (right half, left half) sin. */
void turn(void *x, const float *cosines, const float *signed_sines, int64_t rows, int64_t stride,
                      int64_t heads, int64_t width, int32_t kind) {
    const int64_t half = width / 2, whole = half - half % LANES;
    for (int64_t row = 0; row < rows; row++) {
        const float *cos = cosines + row * width, *sin = signed_sines + row * width;
        for (int64_t head = 0; head < heads; head++) {
            const int64_t left = row * stride + head * width, right = left + half;
            for (int64_t i = 0; i < whole; i += LANES) {
                const lanes a = load(x, left + i, kind), b = load(x, right + i, kind);
                store(x, left + i, a * load(cos, i, FLOAT) + b * load(sin, i, FLOAT), kind);
                store(x, right + i, b * load(cos, half + i, FLOAT) + a * load(sin, half + i, FLOAT), kind);
            }
            for (int64_t i = whole; i < half; i++) {
                const float a = one(x, left + i, kind), b = one(x, right + i, kind);
                store_one(x, left + i, a * cos[i] + b * sin[i], kind);
                store_one(x, right + i, b * cos[half + i] + a * sin[half + i], kind);
            }
        }
    }
}

/* Copy keys and values of each row, `bytes` of each and the rows `stride` bytes apart, to the row's place. */
void keep(const char *k, const char *v, char *data, const int64_t *places, int64_t rows, int64_t stride,
          int64_t bytes) {
    for (int64_t row = 0; row < rows; row++) {
        char *to = data + places[row] * 2 * bytes;
        memcpy(to, k + row * stride, (size_t)bytes);
        memcpy(to + bytes, v + row * stride, (size_t)bytes);
    }
}
