/* Element-wise ops, rows by index, norms, rotary embedding, gated activation. Formulas: core/abi/src/ops/catalogue.rs. */
#include "toy.h"

#include <math.h>

static int64_t width(const tensor *t) { return t->dim[t->rank - 1]; }
static int64_t step(const tensor *t) { return t->stride[t->rank - 1]; }

halyard_code run_copy(const call *c, halyard_error *err) {
  const tensor *x = &c->t[0], *y = &c->t[1];
  (void)err;
  for (int64_t n = 0; n < tensor_rows(x); n++) {
    for (int64_t h = 0; h < width(x); h++) {
      tensor_set(y, tensor_row(y, n) + h * step(y), tensor_get(x, tensor_row(x, n) + h * step(x)));
    }
  }
  return HALYARD_CODE_OK;
}

/* y = f(a, b); b may lack leading dims: its rows repeat. */
static void pairwise(const call *c, int multiply) {
  const tensor *a = &c->t[0], *b = &c->t[1], *y = &c->t[2];
  for (int64_t n = 0; n < tensor_rows(a); n++) {
    int64_t ra = tensor_row(a, n), rb = tensor_row(b, n % tensor_rows(b)), ry = tensor_row(y, n);
    for (int64_t h = 0; h < width(a); h++) {
      double left = tensor_get(a, ra + h * step(a)), right = tensor_get(b, rb + h * step(b));
      tensor_set(y, ry + h * step(y), multiply ? left * right : left + c->params->alpha * right);
    }
  }
}

halyard_code run_add(const call *c, halyard_error *err) {
  (void)err;
  pairwise(c, 0);
  return HALYARD_CODE_OK;
}

halyard_code run_mul(const call *c, halyard_error *err) {
  (void)err;
  pairwise(c, 1);
  return HALYARD_CODE_OK;
}

halyard_code run_gather_rows(const call *c, halyard_error *err) {
  const tensor *x = &c->t[0], *idx = &c->t[1], *y = &c->t[2];
  for (int64_t b = 0; b < y->dim[0]; b++) {
    int64_t row = tensor_get_int(idx, b * idx->stride[0]);
    if (row >= x->dim[0]) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "row %lld of %lld", (long long)row, (long long)x->dim[0]);
    for (int64_t h = 0; h < y->dim[1]; h++) {
      tensor_set(y, b * y->stride[0] + h * y->stride[1], row < 0 ? 0 : tensor_get(x, row * x->stride[0] + h * x->stride[1]));
    }
  }
  return HALYARD_CODE_OK;
}

/* s = x, or with a residual r := s = round(x + r); y = s rsqrt(mean(s^2) + eps) (gamma + plus_one). */
halyard_code run_rms_norm(const call *c, halyard_error *err) {
  const tensor *x = &c->t[0], *gamma = &c->t[1], *y = &c->t[2], *r = &c->t[3];
  /* With a residual, the sum lies in r when the row is read again. */
  const tensor *s = c->has[3] ? r : x;
  (void)err;
  for (int64_t n = 0; n < tensor_rows(x); n++) {
    int64_t rx = tensor_row(x, n), ry = tensor_row(y, n), rs = tensor_row(s, n);
    double squares = 0;
    for (int64_t h = 0; h < width(x); h++) {
      double v = tensor_get(x, rx + h * step(x));
      if (c->has[3]) {
        v = tensor_rounded(r, v + tensor_get(r, rs + h * step(r)));
        tensor_set(r, rs + h * step(r), v);
      }
      squares += v * v;
    }
    double factor = 1 / sqrt(squares / (double)width(x) + c->params->eps);
    for (int64_t h = 0; h < width(x); h++) {
      double g = tensor_get(gamma, h * gamma->stride[0]) + c->params->plus_one;
      tensor_set(y, ry + h * step(y), tensor_get(s, rs + h * step(s)) * factor * g);
    }
  }
  return HALYARD_CODE_OK;
}

/* (a, b) -> (a cos - b sin, b cos + a sin) for each pair of rotated dims. */
static void rotate(const call *c, const tensor *x, int64_t token, int64_t position) {
  const tensor *table = &c->t[3];
  int64_t half = table->dim[1] / 2, row = position * table->stride[0];
  for (int64_t head = 0; head < x->dim[1]; head++) {
    int64_t start = token * x->stride[0] + head * x->stride[1] + c->params->offset * x->stride[2];
    for (int64_t i = 0; i < half; i++) {
      int64_t first = c->params->interleaved ? 2 * i : i, second = c->params->interleaved ? 2 * i + 1 : i + half;
      int64_t ia = start + first * x->stride[2], ib = start + second * x->stride[2];
      double a = tensor_get(x, ia), b = tensor_get(x, ib);
      double cosine = tensor_get(table, row + i * table->stride[1]), sine = tensor_get(table, row + (half + i) * table->stride[1]);
      tensor_set(x, ia, a * cosine - b * sine);
      tensor_set(x, ib, b * cosine + a * sine);
    }
  }
}

halyard_code run_rope(const call *c, halyard_error *err) {
  const tensor *pos = &c->t[2], *table = &c->t[3];
  for (int64_t t = 0; t < c->t[0].dim[0]; t++) {
    int64_t p = tensor_get_int(pos, t * pos->stride[0]);
    if (p >= table->dim[0]) {
      return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "position %lld of %lld", (long long)p, (long long)table->dim[0]);
    }
    if (p < 0) continue;
    rotate(c, &c->t[0], t, p);
    if (c->has[1]) rotate(c, &c->t[1], t, p);
  }
  return HALYARD_CODE_OK;
}

static double activate(int64_t act, double g) {
  switch (act) {
    case 0: return g / (1 + exp(-g));
    case 1: return 0.5 * g * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g)));
    default: return 0.5 * g * (1 + erf(g / sqrt(2.0)));
  }
}

halyard_code run_act_mul(const call *c, halyard_error *err) {
  const tensor *gu = &c->t[0], *y = &c->t[1];
  double limit = c->params->limit;
  (void)err;
  for (int64_t t = 0; t < y->dim[0]; t++) {
    for (int64_t i = 0; i < y->dim[1]; i++) {
      double g = tensor_get(gu, t * gu->stride[0] + i * gu->stride[1]);
      double u = tensor_get(gu, t * gu->stride[0] + (y->dim[1] + i) * gu->stride[1]);
      if (limit > 0) {
        /* Comparisons that leave NaN alone. */
        if (g > limit) g = limit;
        if (u > limit) u = limit;
        if (u < -limit) u = -limit;
      }
      tensor_set(y, t * y->stride[0] + i * y->stride[1], activate(c->params->act, g) * u);
    }
  }
  return HALYARD_CODE_OK;
}
