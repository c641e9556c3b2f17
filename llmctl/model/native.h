/* What Python (native.py) hands to attention.c, fused.c and softmax.c. In a forward pass `grad` is null. */

#ifndef LLMCTL_NATIVE_H
#define LLMCTL_NATIVE_H

#include "lanes.h"

typedef struct {
    const float *q, *k, *v; /* [tokens, heads, width], [tokens, kv_heads, width], [tokens, kv_heads, value_width] */
    float *out, *norms;     /* [tokens, heads, value_width]; [tokens, heads], log of the sum of the exponentiated scores */
    const float *grad;      /* of out */
    float *q_grad, *k_grad, *v_grad;
    const int32_t *starts;  /* [documents + 1], of each document among the tokens */
    const int32_t *real;    /* [documents], 0 for padding, which mixes nothing */
    int64_t documents, longest, heads, kv_heads, width, value_width, window; /* window 0: none */
    float scale;
    int32_t next, failed;
} Packed;

typedef struct {
    const float *logits;    /* [rows, width] */
    const int64_t *targets; /* [rows], each in [0, width) */
    float *weights;         /* [rows, width] or null, e^(logit - largest); may be the logits */
    float *sums, *losses;   /* [rows], of the weights; -log of the target's share */
    int64_t rows, width;
    int32_t next;
} CrossEntropy;

typedef struct {
    const float *x, *weight; /* [rows, width]; [width] */
    float *out, *scales;     /* [rows, width], and backward the gradient of x; [rows], what x was multiplied by */
    const float *grad;       /* of out */
    float *weight_grad;      /* [rows / 32 rounded up, width], zeros: parts of the gradient of weight */
    const float *beside;     /* null, or what is added to the gradient of x */
    int64_t rows, width;
    float eps;
    int32_t next;
} Norm;

typedef struct {
    const float *gate, *up; /* [rows, width] */
    float *out;             /* [rows, width], and backward the gradient of gate */
    const float *grad;      /* of out */
    float *up_grad;
    int64_t rows, width;
    int32_t next;
} Gate;

typedef struct {
    const float *x, *cosines, *signed_sines; /* [rows, heads, width]; [rows, width] */
    float *out;                              /* [rows, heads, width] */
    int64_t rows, heads, width;
    float sign; /* 1, or -1 backward */
    int32_t next;
} Turn;

#endif
