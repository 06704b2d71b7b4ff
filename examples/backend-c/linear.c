/* Ops with weights. */
#include "toy.h"

#include <stdlib.h>

/* y[t] = scale W[id - start], zeros for an id outside the shard. */
halyard_code run_embedding(const call *c, halyard_error *err) {
  const tensor *ids = &c->t[0], *y = &c->t[1];
  (void)err;
  for (int64_t t = 0; t < y->dim[0]; t++) {
    int64_t id = tensor_get_int(ids, t * ids->stride[0]) - c->params->vocab_start;
    int inside = id >= 0 && (uint64_t)id < c->w->desc.n;
    for (int64_t h = 0; h < y->dim[1]; h++) {
      double value = inside ? c->params->scale * c->w->rows[(uint64_t)id * c->w->desc.k + (uint64_t)h] : 0;
      tensor_set(y, t * y->stride[0] + h * y->stride[1], value);
    }
  }
  return HALYARD_CODE_OK;
}

/* Four sums side by side: a single one would wait for each addition. */
static double dot(const double *x, const float *w, int64_t k) {
  double sum[4] = { 0, 0, 0, 0 };
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) {
    for (int lane = 0; lane < 4; lane++) sum[lane] += x[i + lane] * w[i + lane];
  }
  for (; i < k; i++) sum[0] += x[i] * w[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* y = x W^T + bias (+ y). */
halyard_code run_linear(const call *c, halyard_error *err) {
  const tensor *x = &c->t[0], *bias = &c->t[1], *y = &c->t[2];
  int64_t columns = x->dim[1];
  double *row = malloc((size_t)(columns > 0 ? columns : 1) * sizeof *row);
  if (!row) return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for a row of %lld", (long long)columns);
  for (int64_t t = 0; t < x->dim[0]; t++) {
    for (int64_t k = 0; k < columns; k++) row[k] = tensor_get(x, t * x->stride[0] + k * x->stride[1]);
    for (int64_t n = 0; n < y->dim[1]; n++) {
      int64_t at = t * y->stride[0] + n * y->stride[1];
      double value = dot(row, c->w->rows + n * columns, columns);
      if (c->has[1]) value += tensor_get(bias, n * bias->stride[0]);
      if (c->params->accumulate) value += tensor_get(y, at);
      tensor_set(y, at, value);
    }
  }
  free(row);
  return HALYARD_CODE_OK;
}
