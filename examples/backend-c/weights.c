/* Weights: dense, Q4_1 and Q8_0 rows, unpacked to f32. */
#include "toy.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 32 /* Columns a block of the GGUF schemes. */

static halyard_code check(const halyard_weight_desc *w, halyard_error *err) {
  int dense = w->scheme == HALYARD_SCHEME_DENSE;
  if (!dense && w->scheme != HALYARD_SCHEME_GGUF_Q4_1 && w->scheme != HALYARD_SCHEME_GGUF_Q8_0) {
    return fail(err, HALYARD_CODE_UNSUPPORTED, "weights of scheme %u; dense, q4_1 and q8_0 are", w->scheme);
  }
  if (w->groups != 1 || (w->role != HALYARD_ROLE_LINEAR && w->role != HALYARD_ROLE_EMBEDDING)) {
    return fail(err, HALYARD_CODE_UNSUPPORTED, "weights of role %u with %u groups; linear and embedding are", w->role, w->groups);
  }
  if (w->attrs.len > 0 || w->flags) return fail(err, HALYARD_CODE_UNSUPPORTED, "weights with attributes or flags");
  if (dense ? w->dtype < HALYARD_DTYPE_F32 || w->dtype > HALYARD_DTYPE_BF16 : w->dtype != HALYARD_DTYPE_NONE) {
    return fail(err, HALYARD_CODE_UNSUPPORTED, "weights of scheme %u and dtype %u", w->scheme, w->dtype);
  }
  if (w->n == 0 || w->k == 0 || w->n > ((uint64_t)1 << 40) / w->k || (!dense && w->k % BLOCK)) {
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "a weight of %llu x %llu", (unsigned long long)w->n, (unsigned long long)w->k);
  }
  return HALYARD_CODE_OK;
}

halyard_code weights_plan(halyard_device *d, const halyard_weight_desc *desc, halyard_weight_plan *plan, halyard_error *err) {
  halyard_code code = check(desc, err);
  (void)d;
  plan->bytes = desc->n * desc->k * sizeof(float);
  plan->align = 64;
  return code;
}

halyard_code weights_create(halyard_device *d, const halyard_weight_desc *desc, const halyard_mem_ref *dst, halyard_weight *handle,
                            halyard_error *err) {
  halyard_weight_plan plan;
  char *start;
  halyard_code code = weights_plan(d, desc, &plan, err);
  if (code == HALYARD_CODE_OK) code = memory_resolve(d, dst, plan.bytes, &start, err);
  if (code != HALYARD_CODE_OK) return code;
  weight *w = calloc(1, sizeof *w);
  uint8_t *filled = calloc(desc->n, 1);
  if (w && filled) {
    w->desc = *desc;
    w->rows = (float *)(void *)start;
    w->filled = filled;
    w->missing = desc->n;
    pthread_mutex_lock(&d->lock);
    *handle = handle_new(&d->weights, w);
    pthread_mutex_unlock(&d->lock);
    if (*handle) return HALYARD_CODE_OK;
  }
  free(w);
  free(filled);
  return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for the bookkeeping of a weight");
}

static halyard_code find(halyard_device *d, halyard_weight handle, weight **w, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  *w = handle_get(&d->weights, handle);
  pthread_mutex_unlock(&d->lock);
  return *w ? HALYARD_CODE_OK : fail(err, HALYARD_CODE_INVALID_ARGUMENT, "no weight %llu", (unsigned long long)handle);
}

static float f16_at(const uint8_t *bytes) { return (float)f16_to_double((uint16_t)(bytes[0] | bytes[1] << 8)); }

/* One row of blocks: f16 d, f16 m, 16 bytes of codes (low nibbles first): w = d q + m. */
static void unpack_q4_1(const uint8_t *block, float *row, uint64_t k) {
  for (; k > 0; k -= BLOCK, block += 20, row += BLOCK) {
    float d = f16_at(block), m = f16_at(block + 2);
    for (int i = 0; i < 16; i++) {
      row[i] = d * (float)(block[4 + i] & 15) + m;
      row[16 + i] = d * (float)(block[4 + i] >> 4) + m;
    }
  }
}

/* One row of blocks: f16 d, 32 signed codes: w = d q. */
static void unpack_q8_0(const uint8_t *block, float *row, uint64_t k) {
  for (; k > 0; k -= BLOCK, block += 34, row += BLOCK) {
    float d = f16_at(block);
    for (int i = 0; i < BLOCK; i++) row[i] = d * (float)(int8_t)block[2 + i];
  }
}

/* A part must be [rows, elements of a row], its last dim contiguous. */
static halyard_code check_fill(const weight *w, const halyard_weight_fill *f, halyard_error *err) {
  uint64_t blocks = w->desc.k / BLOCK;
  uint64_t width = w->desc.scheme == HALYARD_SCHEME_DENSE ? w->desc.k : blocks * (w->desc.scheme == HALYARD_SCHEME_GGUF_Q4_1 ? 20 : 34);
  uint32_t dtype = w->desc.scheme == HALYARD_SCHEME_DENSE ? w->desc.dtype : HALYARD_DTYPE_U8;
  if (w->sealed || f->group || f->flags || f->row0 > w->desc.n || f->rows > w->desc.n - f->row0 || f->parts.len != 1) {
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "rows that the weight does not have, or a sealed weight");
  }
  const halyard_tensor_view *part = f->parts.ptr;
  if (part->dtype != dtype || part->rank != 2 || part->dims[0] != (int64_t)f->rows || part->dims[1] != (int64_t)width ||
      (width > 1 && part->strides[1] != 1)) {
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "a part of another dtype or shape than [%llu, %llu]", (unsigned long long)f->rows,
                (unsigned long long)width);
  }
  for (uint64_t row = f->row0; row < f->row0 + f->rows; row++) {
    if (w->filled[row]) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "row %llu came twice", (unsigned long long)row);
  }
  return HALYARD_CODE_OK;
}

halyard_code weights_fill(halyard_device *d, halyard_stream s, halyard_weight handle, const halyard_weight_fill *f, halyard_error *err) {
  weight *w;
  halyard_code code = stream_check(d, s, err);
  if (code == HALYARD_CODE_OK) code = find(d, handle, &w, err);
  if (code == HALYARD_CODE_OK) code = check_fill(w, f, err);
  if (code != HALYARD_CODE_OK) return code;
  tensor part = tensor_open(f->parts.ptr);
  for (uint64_t i = 0; i < f->rows; i++) {
    float *row = w->rows + (f->row0 + i) * w->desc.k;
    int64_t from = (int64_t)i * part.stride[0];
    switch (w->desc.scheme) {
      case HALYARD_SCHEME_GGUF_Q4_1: unpack_q4_1((const uint8_t *)part.data + from, row, w->desc.k); break;
      case HALYARD_SCHEME_GGUF_Q8_0: unpack_q8_0((const uint8_t *)part.data + from, row, w->desc.k); break;
      default:
        for (uint64_t k = 0; k < w->desc.k; k++) row[k] = (float)tensor_get(&part, from + (int64_t)k);
    }
    w->filled[f->row0 + i] = 1;
  }
  w->missing -= f->rows;
  return HALYARD_CODE_OK;
}

halyard_code weights_seal(halyard_device *d, halyard_stream s, halyard_weight handle, halyard_error *err) {
  weight *w;
  halyard_code code = stream_check(d, s, err);
  if (code == HALYARD_CODE_OK) code = find(d, handle, &w, err);
  if (code != HALYARD_CODE_OK) return code;
  if (w->missing) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "%llu rows have not been filled", (unsigned long long)w->missing);
  w->sealed = 1;
  return HALYARD_CODE_OK;
}

halyard_code weights_get(halyard_device *d, halyard_weight handle, weight **w, halyard_error *err) {
  halyard_code code = find(d, handle, w, err);
  if (code == HALYARD_CODE_OK && !(*w)->sealed) code = fail(err, HALYARD_CODE_INVALID_ARGUMENT, "the weight is not sealed");
  return code;
}

static void release(weight *w) {
  if (w) free(w->filled);
  free(w);
}

halyard_code weights_destroy(halyard_device *d, halyard_weight handle, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  weight *w = handle_drop(&d->weights, handle);
  pthread_mutex_unlock(&d->lock);
  if (!w) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "no weight %llu", (unsigned long long)handle);
  release(w);
  return HALYARD_CODE_OK;
}

void weights_close(halyard_device *d) {
  for (size_t i = 0; i < d->weights.count; i++) release(d->weights.objects[i]);
  free(d->weights.objects);
}
