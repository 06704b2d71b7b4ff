/* The paged cache, [blocks, block, heads, dims], and attention over it. */
#include "toy.h"

#include <math.h>
#include <stdlib.h>

static halyard_code beyond(halyard_error *err, const char *what, int64_t value, int64_t limit) {
  return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "%s %lld, there are %lld", what, (long long)value, (long long)limit);
}

halyard_code run_kv_write(const call *c, halyard_error *err) {
  const tensor *slots = &c->t[2];
  for (int part = 0; part < 2; part++) {
    const tensor *x = &c->t[part], *cache = &c->t[3 + part];
    int64_t block = cache->dim[1];
    for (int64_t t = 0; t < x->dim[0]; t++) {
      int64_t slot = tensor_get_int(slots, t * slots->stride[0]);
      if (slot < 0) continue;
      if (slot >= cache->dim[0] * block) return beyond(err, "slot", slot, cache->dim[0] * block);
      for (int64_t h = 0; h < x->dim[1]; h++) {
        int64_t to = slot / block * cache->stride[0] + slot % block * cache->stride[1] + h * cache->stride[2];
        int64_t from = t * x->stride[0] + h * x->stride[1];
        for (int64_t d = 0; d < x->dim[2]; d++) tensor_set(cache, to + d, tensor_get(x, from + d * x->stride[2]));
      }
    }
  }
  return HALYARD_CODE_OK;
}

halyard_code run_kv_copy_blocks(const call *c, halyard_error *err) {
  const tensor *pairs = &c->t[2];
  for (int part = 0; part < 2; part++) {
    const tensor *cache = &c->t[part];
    for (int64_t p = 0; p < pairs->dim[0]; p++) {
      int64_t from = tensor_get_int(pairs, p * pairs->stride[0]);
      int64_t to = tensor_get_int(pairs, p * pairs->stride[0] + pairs->stride[1]);
      if (from < 0 || to < 0) continue;
      if (from >= cache->dim[0] || to >= cache->dim[0]) return beyond(err, "block", from > to ? from : to, cache->dim[0]);
      for (int64_t i = 0; i < cache->stride[0]; i++) {
        tensor_set(cache, to * cache->stride[0] + i, tensor_get(cache, from * cache->stride[0] + i));
      }
    }
  }
  return HALYARD_CODE_OK;
}

/* One query: token t, which sees keys first .. end of sequence b. z and sum are scratch of end - first and Dv numbers. */
static void attend(const call *c, int64_t b, int64_t t, int64_t first, int64_t end, double *z, double *sum) {
  const tensor *q = &c->t[0], *k = &c->t[1], *v = &c->t[2], *table = &c->t[3], *o = &c->t[6], *lse = &c->t[7], *sinks = &c->t[10];
  int64_t block = k->dim[1], group = q->dim[1] / k->dim[2];
  for (int64_t h = 0; h < q->dim[1]; h++) {
    int64_t qrow = t * q->stride[0] + h * q->stride[1], orow = t * o->stride[0] + h * o->stride[1];
    double largest = -INFINITY, total = 0;
    for (int64_t j = first; j < end; j++) {
      int64_t place = tensor_get_int(table, b * table->stride[0] + j / block * table->stride[1]);
      int64_t krow = place * k->stride[0] + j % block * k->stride[1] + h / group * k->stride[2];
      double dot = 0;
      for (int64_t d = 0; d < q->dim[2]; d++) dot += tensor_get(q, qrow + d * q->stride[2]) * tensor_get(k, krow + d);
      dot *= c->params->scale;
      if (c->params->softcap > 0) dot = c->params->softcap * tanh(dot / c->params->softcap);
      z[j - first] = dot;
      if (dot > largest || isnan(dot)) largest = dot;
    }
    int sink = c->has[10] && first < end;
    double extra = sink ? tensor_get(sinks, h * sinks->stride[0]) : 0;
    if (sink && extra > largest) largest = extra;
    if (sink) total = exp(extra - largest);
    for (int64_t d = 0; d < o->dim[2]; d++) sum[d] = 0;
    for (int64_t j = first; j < end; j++) {
      int64_t place = tensor_get_int(table, b * table->stride[0] + j / block * table->stride[1]);
      int64_t vrow = place * v->stride[0] + j % block * v->stride[1] + h / group * v->stride[2];
      double weight = exp(z[j - first] - largest);
      total += weight;
      for (int64_t d = 0; d < o->dim[2]; d++) sum[d] += weight * tensor_get(v, vrow + d);
    }
    for (int64_t d = 0; d < o->dim[2]; d++) tensor_set(o, orow + d * o->stride[2], first < end ? sum[d] / total : 0);
    if (c->has[7]) tensor_set(lse, t * lse->stride[0] + h * lse->stride[1], first < end ? largest + log(total) : -INFINITY);
  }
}

/* The blocks of a sequence's n keys must be there. */
static halyard_code check_blocks(const call *c, int64_t b, int64_t n, halyard_error *err) {
  const tensor *k = &c->t[1], *table = &c->t[3];
  int64_t used = (n + k->dim[1] - 1) / k->dim[1];
  if (used > table->dim[1]) return beyond(err, "block of a table row", used, table->dim[1]);
  for (int64_t i = 0; i < used; i++) {
    int64_t block = tensor_get_int(table, b * table->stride[0] + i * table->stride[1]);
    if (block < 0 || block >= k->dim[0]) return beyond(err, "block", block, k->dim[0]);
  }
  return HALYARD_CODE_OK;
}

static halyard_code sequence(const call *c, int64_t b, double *z, double *sum, halyard_error *err) {
  const tensor *q = &c->t[0], *cu_q = &c->t[4], *kv_len = &c->t[5];
  int64_t first = tensor_get_int(cu_q, b * cu_q->stride[0]), end = tensor_get_int(cu_q, (b + 1) * cu_q->stride[0]);
  int64_t n = tensor_get_int(kv_len, b * kv_len->stride[0]);
  if (first < 0 || first > end || end > q->dim[0] || n < 0) return beyond(err, "query", end, q->dim[0]);
  halyard_code code = check_blocks(c, b, n, err);
  for (int64_t t = first; code == HALYARD_CODE_OK && t < end; t++) {
    int64_t p = n - end + t; /* The query's own position; below 0 it sees nothing. */
    int64_t from = c->params->window >= 0 && p > c->params->window ? p - c->params->window : 0;
    int64_t to = p < 0 ? 0 : c->params->causal ? p + 1 : n;
    attend(c, b, t, from, to, z, sum);
  }
  return code;
}

/* Keys of the longest sequence. */
static int64_t longest(const tensor *kv_len) {
  int64_t most = 0;
  for (int64_t b = 0; b < kv_len->dim[0]; b++) {
    int64_t n = tensor_get_int(kv_len, b * kv_len->stride[0]);
    if (n > most) most = n;
  }
  return most;
}

halyard_code run_paged_attention(const call *c, halyard_error *err) {
  const tensor *q = &c->t[0], *cu_q = &c->t[4], *kv_len = &c->t[5], *o = &c->t[6];
  int64_t keys = longest(kv_len), sequences = kv_len->dim[0];
  double *scratch = malloc((size_t)(keys + o->dim[2] + 1) * sizeof *scratch);
  if (!scratch) return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for %lld logits", (long long)keys);
  halyard_code code = HALYARD_CODE_OK;
  for (int64_t b = 0; code == HALYARD_CODE_OK && b < sequences; b++) code = sequence(c, b, scratch, scratch + keys, err);
  /* Tokens after the last sequence are padding: they see nothing. */
  int64_t padding = tensor_get_int(cu_q, sequences * cu_q->stride[0]);
  if (code == HALYARD_CODE_OK && padding < 0) code = beyond(err, "query", padding, q->dim[0]);
  for (int64_t t = padding; code == HALYARD_CODE_OK && t < q->dim[0]; t++) attend(c, 0, t, 0, 0, scratch, scratch + keys);
  free(scratch);
  return code;
}
