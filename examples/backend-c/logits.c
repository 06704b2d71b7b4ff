/* From logits to a token. */
#include "toy.h"

#include <math.h>
#include <stdlib.h>

/* A logit and its id; NaN counts as -inf. */
typedef struct entry {
  double l;
  int64_t id;
} entry;

static double logit(const tensor *t, int64_t b, int64_t v) {
  double l = tensor_get(t, b * t->stride[0] + v * t->stride[1]);
  return isnan(l) ? -INFINITY : l;
}

/* Largest first, ties by id. */
static int compare(const void *left, const void *right) {
  const entry *a = left, *b = right;
  if (a->l != b->l) return a->l > b->l ? -1 : 1;
  return a->id < b->id ? -1 : a->id > b->id;
}

static entry *new_row(const tensor *logits, halyard_error *err) {
  entry *row = malloc((size_t)(logits->dim[1] + 1) * sizeof *row);
  if (!row) fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for %lld logits", (long long)logits->dim[1]);
  return row;
}

/* A row divided by a temperature, in order. */
static void sorted_row(const tensor *logits, int64_t b, double temperature, entry *row) {
  for (int64_t v = 0; v < logits->dim[1]; v++) {
    row[v].l = logit(logits, b, v) / temperature;
    row[v].id = v;
  }
  qsort(row, (size_t)logits->dim[1], sizeof *row, compare);
}

/* ln sum e^l of a row that is divided by a temperature. */
static double log_sum(const tensor *logits, int64_t b, double temperature) {
  double largest = -INFINITY, sum = 0;
  for (int64_t v = 0; v < logits->dim[1]; v++) largest = fmax(largest, logit(logits, b, v) / temperature);
  for (int64_t v = 0; v < logits->dim[1]; v++) sum += exp(logit(logits, b, v) / temperature - largest);
  return largest + log(sum);
}

static int64_t largest_id(const tensor *logits, int64_t b) {
  int64_t best = 0;
  for (int64_t v = 1; v < logits->dim[1]; v++) {
    if (logit(logits, b, v) > logit(logits, b, best)) best = v;
  }
  return best;
}

halyard_code run_argmax(const call *c, halyard_error *err) {
  const tensor *logits = &c->t[0], *ids = &c->t[1];
  (void)err;
  for (int64_t b = 0; b < logits->dim[0]; b++) tensor_set(ids, b * ids->stride[0], (double)largest_id(logits, b));
  return HALYARD_CODE_OK;
}

halyard_code run_topk(const call *c, halyard_error *err) {
  const tensor *logits = &c->t[0], *values = &c->t[1], *ids = &c->t[2];
  entry *row = new_row(logits, err);
  if (!row) return HALYARD_CODE_OUT_OF_MEMORY;
  for (int64_t b = 0; b < logits->dim[0]; b++) {
    sorted_row(logits, b, 1, row);
    for (int64_t i = 0; i < ids->dim[1] && i < logits->dim[1]; i++) {
      tensor_set(values, b * values->stride[0] + i * values->stride[1], row[i].l);
      tensor_set(ids, b * ids->stride[0] + i * ids->stride[1], (double)row[i].id);
    }
  }
  free(row);
  return HALYARD_CODE_OK;
}

static halyard_code check_id(int64_t id, const tensor *logits, halyard_error *err) {
  if (id < logits->dim[1]) return HALYARD_CODE_OK;
  return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "id %lld, there are %lld", (long long)id, (long long)logits->dim[1]);
}

halyard_code run_logprobs(const call *c, halyard_error *err) {
  const tensor *logits = &c->t[0], *ids = &c->t[1], *out = &c->t[2];
  for (int64_t b = 0; b < logits->dim[0]; b++) {
    double norm = log_sum(logits, b, 1);
    for (int64_t m = 0; m < ids->dim[1]; m++) {
      int64_t id = tensor_get_int(ids, b * ids->stride[0] + m * ids->stride[1]);
      halyard_code code = check_id(id, logits, err);
      if (code != HALYARD_CODE_OK) return code;
      tensor_set(out, b * out->stride[0] + m * out->stride[1], id < 0 ? 0 : logit(logits, b, id) - norm);
    }
  }
  return HALYARD_CODE_OK;
}

static double at2(const tensor *t, int64_t b, int64_t m) { return tensor_get(t, b * t->stride[0] + m * t->stride[1]); }

/* The bias of one row, then its penalties. */
static halyard_code adjust(const call *c, int64_t b, halyard_error *err) {
  const tensor *logits = &c->t[0], *ids = &c->t[2], *all = &c->t[3], *out = &c->t[4], *params = &c->t[5];
  const tensor *bias_ids = &c->t[6], *bias = &c->t[7];
  for (int64_t m = 0; c->has[6] && c->has[7] && m < bias_ids->dim[1]; m++) {
    int64_t id = (int64_t)at2(bias_ids, b, m), at = b * logits->stride[0] + id * logits->stride[1];
    halyard_code code = check_id(id, logits, err);
    if (code != HALYARD_CODE_OK) return code;
    if (id >= 0) tensor_set(logits, at, tensor_get(logits, at) + at2(bias, b, m));
  }
  for (int64_t m = 0; c->has[2] && c->has[3] && c->has[4] && c->has[5] && m < ids->dim[1]; m++) {
    int64_t id = (int64_t)at2(ids, b, m), at = b * logits->stride[0] + id * logits->stride[1];
    halyard_code code = check_id(id, logits, err);
    if (code != HALYARD_CODE_OK) return code;
    if (id < 0 || at2(all, b, m) <= 0) continue;
    double l = tensor_get(logits, at), count = at2(out, b, m);
    l = l > 0 ? l / at2(params, b, 0) : l * at2(params, b, 0);
    tensor_set(logits, at, l - at2(params, b, 2) * count - (count > 0 ? at2(params, b, 1) : 0));
  }
  return HALYARD_CODE_OK;
}

halyard_code run_logits_process(const call *c, halyard_error *err) {
  const tensor *logits = &c->t[0], *mask = &c->t[1];
  for (int64_t b = 0; b < logits->dim[0]; b++) {
    halyard_code code = adjust(c, b, err);
    if (code != HALYARD_CODE_OK) return code;
    for (int64_t v = 0; c->has[1] && v < logits->dim[1]; v++) {
      int64_t word = tensor_get_int(mask, b * mask->stride[0] + v / 32 * mask->stride[1]);
      if (!(word >> (v % 32) & 1)) tensor_set(logits, b * logits->stride[0] + v * logits->stride[1], -INFINITY);
    }
  }
  return HALYARD_CODE_OK;
}

/* The first word of Philox 4x32-10 (Salmon et al., SC 2011) as a number in [0, 1). */
static double uniform(uint64_t seed, uint64_t offset) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  uint32_t c[4] = { (uint32_t)offset, (uint32_t)(offset >> 32), 0, 0 };
  for (int round = 0; round < 10; round++) {
    uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
    c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
    c[1] = (uint32_t)b;
    c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
    c[3] = (uint32_t)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (double)(c[0] >> 8) / 16777216.0;
}

/* One of the first `kept` of a sorted row, after top-p and min-p; overwrites the row's logits by probabilities. */
static int64_t draw(entry *row, int64_t kept, double top_p, double min_p, double u) {
  double largest = row[0].l, sum = 0, total = 0, cumulative = 0;
  int64_t nucleus = 0, likely = 0;
  for (int64_t i = 0; i < kept; i++) sum += exp(row[i].l - largest);
  for (int64_t i = 0; i < kept; i++) row[i].l = exp(row[i].l - largest) / sum;
  while (nucleus < kept && cumulative < top_p) cumulative += row[nucleus++].l;
  if (nucleus == 0) nucleus = 1;
  while (likely < nucleus && row[likely].l >= min_p * row[0].l) total += row[likely++].l;
  cumulative = 0;
  for (int64_t i = 0; i < likely; i++) {
    cumulative += row[i].l;
    if (cumulative > u * total) return row[i].id;
  }
  return row[likely > 0 ? likely - 1 : 0].id;
}

halyard_code run_sample(const call *c, halyard_error *err) {
  const tensor *logits = &c->t[0], *ids = &c->t[7], *logprob = &c->t[8];
  int64_t vocab = logits->dim[1];
  entry *row = new_row(logits, err);
  if (!row) return HALYARD_CODE_OUT_OF_MEMORY;
  for (int64_t b = 0; b < logits->dim[0]; b++) {
    double temperature = tensor_get(&c->t[1], b * c->t[1].stride[0]);
    int64_t id = largest_id(logits, b);
    if (temperature > 0) {
      int64_t top_k = tensor_get_int(&c->t[2], b * c->t[2].stride[0]);
      uint64_t seed = (uint64_t)tensor_get_int(&c->t[5], b * c->t[5].stride[0]);
      uint64_t offset = (uint64_t)tensor_get_int(&c->t[6], b * c->t[6].stride[0]);
      sorted_row(logits, b, temperature, row);
      id = draw(row, top_k > 0 && top_k < vocab ? top_k : vocab, tensor_get(&c->t[3], b * c->t[3].stride[0]),
                tensor_get(&c->t[4], b * c->t[4].stride[0]), uniform(seed, offset));
    }
    tensor_set(ids, b * ids->stride[0], (double)id);
    if (c->has[8]) {
      double t = temperature > 0 ? temperature : 1;
      tensor_set(logprob, b * logprob->stride[0], logit(logits, b, id) / t - log_sum(logits, b, t));
    }
  }
  free(row);
  return HALYARD_CODE_OK;
}
