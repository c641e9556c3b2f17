/* Steps between the products of a model that learns, forward and backward, each in one pass over memory (native.py). */

#include "native.h"

#define TAKEN 32 /* rows that a thread takes at a time, and whose part of a weight's gradient is one sum */

/* The next rows to compute: the first of them, or -1 when none is left. */
static int64_t next_rows(int32_t *next, int64_t rows) {
    const int64_t first = TAKEN * (int64_t)__atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    return first < rows ? first : -1;
}

INLINE lanes at(const float *x, int64_t i) { return *(const loose_lanes *)(x + i); }
INLINE void put(float *x, int64_t i, lanes value) { *(loose_lanes *)(x + i) = value; }

/* x weight / sqrt(mean(x^2) + eps) of one row; returns the factor of x. */
static float norm_row(const Norm *job, int64_t row) {
    const float *x = job->x + row * job->width;
    float *out = job->out + row * job->width;
    const int64_t width = job->width, whole = width - width % LANES;
    lanes squares = all(0.0f);
    for (int64_t i = 0; i < whole; i += LANES) squares += at(x, i) * at(x, i);
    float total = sum_of(squares);
    for (int64_t i = whole; i < width; i++) total += x[i] * x[i];
    const float scale = 1.0f / sqrtf(total / (float)width + job->eps);
    for (int64_t i = 0; i < whole; i += LANES) put(out, i, at(x, i) * scale * at(job->weight, i));
    for (int64_t i = whole; i < width; i++) out[i] = x[i] * scale * job->weight[i];
    return scale;
}

/* With n = scale x: the gradient of x is scale (grad weight - n mean(grad weight n)), that of weight the sum of grad n. To
   that of x is added what reaches it beside the norm. */
static void norm_row_back(const Norm *job, int64_t row, float *weight_grad) {
    const float *x = job->x + row * job->width, *grad = job->grad + row * job->width, *weight = job->weight;
    float *out = job->out + row * job->width;
    const int64_t width = job->width, whole = width - width % LANES;
    const float scale = job->scales[row];
    lanes products = all(0.0f);
    for (int64_t i = 0; i < whole; i += LANES) {
        const lanes part = at(grad, i) * at(x, i);
        products += part * at(weight, i);
        put(weight_grad, i, at(weight_grad, i) + part * scale);
    }
    float total = sum_of(products);
    for (int64_t i = whole; i < width; i++) {
        total += grad[i] * x[i] * weight[i];
        weight_grad[i] += grad[i] * x[i] * scale;
    }
    const float back = total / (float)width * scale * scale;
    const float *beside = job->beside ? job->beside + row * job->width : 0;
    for (int64_t i = 0; i < whole; i += LANES) {
        const lanes slope = (at(grad, i) * at(weight, i) - at(x, i) * back) * scale;
        put(out, i, beside ? at(beside, i) + slope : slope);
    }
    for (int64_t i = whole; i < width; i++) out[i] = (grad[i] * weight[i] - x[i] * back) * scale + (beside ? beside[i] : 0);
}

static void norm_some(void *given) {
    Norm *job = given;
    for (int64_t first; (first = next_rows(&job->next, job->rows)) >= 0;)
        for (int64_t row = first; row < first + TAKEN && row < job->rows; row++)
            if (job->grad)
                norm_row_back(job, row, job->weight_grad + first / TAKEN * job->width);
            else
                job->scales[row] = norm_row(job, row);
}

int rms_norm(Norm *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(norm_some, job, parallel, threads);
    return 0;
}

/* silu(gate) up from place `i` on, or both gradients; `count` numbers, at most LANES. */
INLINE void gate_lanes(const Gate *job, int64_t i, size_t count) {
    lanes gate = all(0.0f), up = gate, grad = gate;
    memcpy(&gate, job->gate + i, count * sizeof(float));
    memcpy(&up, job->up + i, count * sizeof(float));
    const lanes share = 1.0f / (exponential(-gate) + 1.0f), bent = gate * share;
    lanes out = bent * up;
    if (job->grad) {
        memcpy(&grad, job->grad + i, count * sizeof(float));
        const lanes up_grad = grad * bent;
        out = grad * up * (share + bent * (1.0f - share));
        memcpy(job->up_grad + i, &up_grad, count * sizeof(float));
    }
    memcpy(job->out + i, &out, count * sizeof(float));
}

static void gate_some(void *given) {
    Gate *job = given;
    for (int64_t first; (first = next_rows(&job->next, job->rows)) >= 0;) {
        const int64_t end = (first + TAKEN < job->rows ? first + TAKEN : job->rows) * job->width;
        int64_t i = first * job->width;
        for (; end - i >= LANES; i += LANES) gate_lanes(job, i, LANES);
        if (i < end) gate_lanes(job, i, (size_t)(end - i));
    }
}

int gate(Gate *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(gate_some, job, parallel, threads);
    return 0;
}

/* x cos + (right half, left half) signed sin, of every head of each row; backward the sine has the other sign. */
static void turn_some(void *given) {
    Turn *job = given;
    const int64_t half = job->width / 2, whole = half - half % LANES;
    for (int64_t first; (first = next_rows(&job->next, job->rows)) >= 0;)
        for (int64_t row = first; row < first + TAKEN && row < job->rows; row++)
            for (int64_t head = 0; head < job->heads; head++) {
                const float *cos = job->cosines + row * job->width, *sin = job->signed_sines + row * job->width;
                const float *left = job->x + (row * job->heads + head) * job->width, *right = left + half;
                float *out = job->out + (row * job->heads + head) * job->width;
                for (int64_t i = 0; i < whole; i += LANES) {
                    const lanes a = at(left, i), b = at(right, i);
                    put(out, i, a * at(cos, i) + b * (at(sin, i) * job->sign));
                    put(out, half + i, b * at(cos, half + i) + a * (at(sin, half + i) * job->sign));
                }
                for (int64_t i = whole; i < half; i++) {
                    out[i] = left[i] * cos[i] + right[i] * (sin[i] * job->sign);
                    out[half + i] = right[i] * cos[half + i] + left[i] * (sin[half + i] * job->sign);
                }
            }
}

int turn(Turn *job, Parallel parallel, unsigned threads) {
    job->next = 0;
    share(turn_some, job, parallel, threads);
    return 0;
}
