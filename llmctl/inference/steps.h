/* What kernel.c, linear.c and block.c know of one another. */

#ifndef LLMCTL_STEPS_H
#define LLMCTL_STEPS_H

#include "../model/lanes.h"

/* Attention of rows to what the cache holds of their sequences. */
typedef struct {
    const void *q;         /* [rows, heads, width], rows q_stride numbers apart */
    void *out;             /* [rows, heads, width] */
    const void *data;      /* one layer of the cache, [blocks, block, 2 x kv_heads, width] */
    const float *scales;   /* of a cache in 8 bits, [blocks, block, 2 x kv_heads] */
    const int32_t *tables; /* [sequences, table_width], blocks of each sequence */
    const int32_t *places; /* [rows, 2], each row's sequence and how many of its tokens it sees */
    const float *slopes;   /* [heads] or null, see Scoring */
    const float *sinks;    /* [heads] or null */
    int64_t rows, heads, kv_heads, width, block, table_width, q_stride, window; /* window 0: none */
    float scale, softcap;                                                       /* softcap 0: none */
    int32_t kind, cache_kind, next;
} Attention;

/* x times packed weights, with what is to be added. */
typedef struct {
    const void *x;        /* [rows, width] */
    const void *weight;   /* [panels, width, 32]; of bfloat16 [panels, width / 2, 32, 2], and width is even */
    const void *bias;     /* [outputs] or null */
    const void *residual; /* [rows, outputs] or null */
    void *out;            /* [rows, outputs] */
    int64_t rows, width, outputs;
    int32_t kind, next;
} Linear;

void attend(Attention *job, Parallel parallel, unsigned threads);
void rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, float eps, int32_t kind);
void gated(const void *joined, void *out, int64_t rows, int64_t width, int32_t kind);
void turn(void *x, const float *cosines, const float *signed_sines, int64_t rows, int64_t stride, int64_t heads,
          int64_t width, int32_t kind);
void keep(const char *k, const char *v, char *data, const int64_t *places, int64_t rows, int64_t stride, int64_t bytes);
void linear(Linear *job, Parallel parallel, unsigned threads);

#endif
