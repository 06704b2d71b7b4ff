/* Elements of a launch's tensors, whatever their dtype and strides. */
#ifndef TENSOR_H
#define TENSOR_H

#include "halyard_backend.h"

typedef struct tensor {
  char *data; /* First element. */
  uint32_t dtype;
  int rank;
  int64_t dim[HALYARD_MAX_RANK];
  int64_t stride[HALYARD_MAX_RANK]; /* In elements. */
} tensor;

/* Opens a view; an opaque one (a cache of this backend) is row-major. */
tensor tensor_open(const halyard_tensor_view *view);

/* Elements as numbers: i is in elements from the first, a sum of index * stride. */
double tensor_get(const tensor *t, int64_t i);
int64_t tensor_get_int(const tensor *t, int64_t i);
/* Rounds once, to nearest even. */
void tensor_set(const tensor *t, int64_t i, double value);
/* What an element of this tensor would hold. */
double tensor_rounded(const tensor *t, double value);

/* Where element 0 of the n-th row is, rows counted over all dims but the last. */
int64_t tensor_row(const tensor *t, int64_t n);
/* Rows: the product of all dims but the last. */
int64_t tensor_rows(const tensor *t);

/* A float of 16 bits, widened. */
double f16_to_double(uint16_t bits);

#endif
