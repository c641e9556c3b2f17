/* One block of a Llama for single tokens of many sequences, from the steps in kernel.c and the products in linear.c.

   It is what llmctl.model.transformer says in Python, which at one token costs as much as a third of the products. */

#include "steps.h"

typedef struct {
    const void *x;                                 /* [rows, width] */
    void *out;                                     /* [rows, width] */
    void *scratch;                                 /* [rows, scratch_width] */
    const void *norm, *qkv, *qkv_bias, *o, *o_bias; /* biases or null */
    const void *norm_after, *gate_up, *gate_up_bias, *down, *down_bias;
    const float *cosines, *signed_sines; /* [rows, width of a head] */
    const int64_t *places;               /* [rows], where keys and values go */
    int64_t width, inner;
    float eps, eps_after;
    Attention attention; /* but for q, out and q_stride */
} Block;

static void product(const Block *block, const void *x, const void *weight, const void *bias, const void *residual,
                    void *out, int64_t width, int64_t outputs, Parallel parallel, unsigned threads) {
    Linear job = {x, weight, bias, residual, out, block->attention.rows, width, outputs, block->attention.kind, 0};
    linear(&job, parallel, threads);
}

void block(Block *block, Parallel parallel, unsigned threads) {
    Attention *attention = &block->attention;
    const int64_t rows = attention->rows, E = attention->width, K = attention->kv_heads, D = block->width;
    const int64_t queries = attention->heads * E, joined_width = queries + 2 * K * E;
    const int32_t kind = attention->kind;
    const int64_t size = kind == FLOAT ? 4 : 2;
    char *normed = block->scratch, *mixed = normed + rows * D * size, *joined = mixed + rows * queries * size;
    char *inner = joined + rows * (joined_width > 2 * block->inner ? joined_width : 2 * block->inner) * size;

    rms_norm(block->x, block->norm, normed, rows, D, block->eps, kind);
    product(block, normed, block->qkv, block->qkv_bias, NULL, joined, D, joined_width, parallel, threads);
    turn(joined, block->cosines, block->signed_sines, rows, joined_width, attention->heads + K, E, kind);
    const char *keys = joined + queries * size;
    keep(keys, keys + K * E * size, (char *)attention->data, block->places, rows, joined_width * size, K * E * size);
    attention->q = joined, attention->out = mixed, attention->q_stride = joined_width;
    attend(attention, parallel, threads);
    product(block, mixed, block->o, block->o_bias, block->x, block->out, queries, D, parallel, threads);

    rms_norm(block->out, block->norm_after, normed, rows, D, block->eps_after, kind);
    product(block, normed, block->gate_up, block->gate_up_bias, NULL, joined, D, 2 * block->inner, parallel, threads);
    gated(joined, inner, rows, block->inner, kind);
    product(block, inner, block->down, block->down_bias, block->out, block->out, block->inner, D, parallel, threads);
}
