#include "tensor.h"

#include <math.h>
#include <string.h>

tensor tensor_open(const halyard_tensor_view *view) {
  tensor t;
  int64_t step = 1;
  memset(&t, 0, sizeof t);
  t.data = (char *)(uintptr_t)(view->data + view->byte_offset);
  t.dtype = view->dtype;
  t.rank = view->rank;
  for (int axis = view->rank - 1; axis >= 0; axis--) {
    t.dim[axis] = view->dims[axis];
    t.stride[axis] = view->flags & HALYARD_FLAG_OPAQUE ? step : view->strides[axis];
    step *= view->dims[axis];
  }
  return t;
}

/* Nearest even, in a format of `mantissa` stored bits, this exponent bias, and numbers at and above `limit` rounding to infinity. */
static uint16_t to_small(double value, int mantissa, int bias, double limit) {
  uint16_t sign = (uint16_t)(signbit(value) ? 0x8000 : 0);
  uint16_t infinity = (uint16_t)((2 * bias + 1) << mantissa);
  double magnitude = fabs(value);
  int exponent;
  if (isnan(value)) return (uint16_t)(sign | infinity | 1 << (mantissa - 1));
  if (magnitude >= limit) return sign | infinity;
  /* Below the normal range, codes count steps of the smallest number; a carry gives the smallest normal one, as it should. */
  if (magnitude < ldexp(1, 1 - bias)) return (uint16_t)(sign | (uint16_t)nearbyint(ldexp(magnitude, bias - 1 + mantissa)));
  double fraction = frexp(magnitude, &exponent); /* [0.5, 1) */
  int code = (int)nearbyint(ldexp(fraction, mantissa + 1)) - (1 << mantissa);
  return (uint16_t)(sign | (uint16_t)(((exponent - 1 + bias) << mantissa) + code));
}

static uint16_t to_f16(double value) { return to_small(value, 10, 15, 65520.0); }
static uint16_t to_bf16(double value) { return to_small(value, 7, 127, ldexp(511, 119)); }

static double from_f32_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

double f16_to_double(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return from_f32_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return ldexp(sign ? -(double)mantissa : (double)mantissa, -24);
  return from_f32_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

double tensor_get(const tensor *t, int64_t i) {
  uint16_t half;
  float single;
  switch (t->dtype) {
    case HALYARD_DTYPE_F32:
      memcpy(&single, t->data + 4 * i, sizeof single);
      return single;
    case HALYARD_DTYPE_F16:
      memcpy(&half, t->data + 2 * i, sizeof half);
      return f16_to_double(half);
    case HALYARD_DTYPE_BF16:
      memcpy(&half, t->data + 2 * i, sizeof half);
      return from_f32_bits((uint32_t)half << 16);
    default: return (double)tensor_get_int(t, i);
  }
}

int64_t tensor_get_int(const tensor *t, int64_t i) {
  int32_t word;
  int64_t wide;
  switch (t->dtype) {
    case HALYARD_DTYPE_I32:
    case HALYARD_DTYPE_U32:
      memcpy(&word, t->data + 4 * i, sizeof word);
      return t->dtype == HALYARD_DTYPE_U32 ? (int64_t)(uint32_t)word : word;
    default: /* I64, U64 */
      memcpy(&wide, t->data + 8 * i, sizeof wide);
      return wide;
  }
}

void tensor_set(const tensor *t, int64_t i, double value) {
  float single = (float)value;
  int32_t word;
  uint16_t half;
  switch (t->dtype) {
    case HALYARD_DTYPE_F32: memcpy(t->data + 4 * i, &single, sizeof single); break;
    case HALYARD_DTYPE_I32: /* Ids, which are small. */
      word = (int32_t)value;
      memcpy(t->data + 4 * i, &word, sizeof word);
      break;
    default:
      half = t->dtype == HALYARD_DTYPE_F16 ? to_f16(value) : to_bf16(value);
      memcpy(t->data + 2 * i, &half, sizeof half);
  }
}

double tensor_rounded(const tensor *t, double value) {
  switch (t->dtype) {
    case HALYARD_DTYPE_F32: return (float)value;
    case HALYARD_DTYPE_F16: return f16_to_double(to_f16(value));
    default: return from_f32_bits((uint32_t)to_bf16(value) << 16);
  }
}

int64_t tensor_row(const tensor *t, int64_t n) {
  int64_t at = 0;
  for (int axis = t->rank - 2; axis >= 0; axis--) {
    at += n % t->dim[axis] * t->stride[axis];
    n /= t->dim[axis];
  }
  return at;
}

int64_t tensor_rows(const tensor *t) {
  int64_t rows = 1;
  for (int axis = 0; axis < t->rank - 1; axis++) rows *= t->dim[axis];
  return rows;
}
