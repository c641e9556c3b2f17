/* What kernel.c, linear.c, block.c, choice.c and decode.c know of one another. */

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

/* See block.c. */
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

/* See choice.c. */
enum { NONE = 0, RAW = 1, SAMPLED = 2 };

/* How one row chooses. */
typedef struct {
    double number, temperature, top_k, top_p, min_p; /* as in Turn and Request */
    double wanted;                                   /* the log-probability that is to be told */
} Manner;

typedef struct {
    const float *logits, *raw; /* [rows, vocab]: what is chosen from, and what the model said */
    const Manner *manners;     /* [rows] */
    float *masses;             /* [threads, vocab rounded up] */
    int64_t *tokens;           /* [rows], -1 where nothing can be chosen */
    float *logprobs, *peaks;   /* [rows], log-probability of the token, and the largest of raw */
    int64_t rows, vocab;
    int32_t next, worker;
} Choice;

void attend(Attention *job, Parallel parallel, unsigned threads);
void rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, float eps, int32_t kind);
void gated(const void *joined, void *out, int64_t rows, int64_t width, int32_t kind);
void turn(void *x, const float *cosines, const float *signed_sines, int64_t rows, int64_t stride, int64_t heads,
          int64_t width, int32_t kind);
void keep(const char *k, const char *v, char *data, const int64_t *places, int64_t rows, int64_t stride, int64_t bytes);
void linear(Linear *job, Parallel parallel, unsigned threads);
int64_t block_bytes(const Block *block);   /* of its weights */
int64_t block_scratch(const Block *block); /* bytes of one row */
void block(Block *block, Parallel parallel, unsigned threads);
void choose(Choice *job, Parallel parallel, unsigned threads);

#endif
