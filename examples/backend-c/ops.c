/* From a descriptor to a kernel, and from a launch to an op's function. */
#include "toy.h"

#include <stdlib.h>
#include <string.h>

struct halyard_kernel {
  halyard_device *device;
  params params;
  op_run *run;
  size_t weights;
};

/* What this backend can do: an op, how many slots and weights it knows, and the attributes it knows. */
typedef struct op {
  uint32_t kind;
  size_t slots, weights;
  op_run *run;
  uint32_t attrs[4];   /* 0 ends them. */
  uint32_t refused[3]; /* Optional slots that must be absent, counted from 1: scales of 8-bit caches. */
} op;

static const op OPS[] = {
  { HALYARD_OP_COPY, 2, 0, run_copy, { 0 }, { 0 } },
  { HALYARD_OP_ADD, 3, 0, run_add, { HALYARD_ATTR_ALPHA }, { 0 } },
  { HALYARD_OP_MUL, 3, 0, run_mul, { 0 }, { 0 } },
  { HALYARD_OP_GATHER_ROWS, 3, 0, run_gather_rows, { 0 }, { 0 } },
  { HALYARD_OP_EMBEDDING, 2, 1, run_embedding, { HALYARD_ATTR_SCALE, HALYARD_ATTR_VOCAB_START }, { 0 } },
  { HALYARD_OP_RMS_NORM, 4, 0, run_rms_norm, { HALYARD_ATTR_EPS, HALYARD_ATTR_PLUS_ONE }, { 0 } },
  { HALYARD_OP_ROPE, 4, 0, run_rope, { HALYARD_ATTR_STYLE, HALYARD_ATTR_OFFSET }, { 0 } },
  { HALYARD_OP_ACT_MUL, 2, 0, run_act_mul, { HALYARD_ATTR_ACT, HALYARD_ATTR_LIMIT }, { 0 } },
  { HALYARD_OP_LINEAR, 3, 1, run_linear, { HALYARD_ATTR_ACCUMULATE, HALYARD_ATTR_ACT_QUANT }, { 0 } },
  { HALYARD_OP_KV_WRITE, 7, 0, run_kv_write, { 0 }, { 6, 7 } },
  { HALYARD_OP_PAGED_ATTENTION, 11, 0, run_paged_attention,
    { HALYARD_ATTR_SCALE, HALYARD_ATTR_CAUSAL, HALYARD_ATTR_WINDOW, HALYARD_ATTR_SOFTCAP }, { 9, 10 } },
  { HALYARD_OP_KV_COPY_BLOCKS, 3, 0, run_kv_copy_blocks, { HALYARD_ATTR_LATENT }, { 0 } },
  { HALYARD_OP_ARGMAX, 2, 0, run_argmax, { 0 }, { 0 } },
  { HALYARD_OP_TOPK, 3, 0, run_topk, { 0 }, { 0 } },
  { HALYARD_OP_LOGPROBS, 3, 0, run_logprobs, { 0 }, { 0 } },
  { HALYARD_OP_LOGITS_PROCESS, 8, 0, run_logits_process, { 0 }, { 0 } },
  { HALYARD_OP_SAMPLE, 9, 0, run_sample, { 0 }, { 0 } },
};

static const op *find_op(uint32_t kind) {
  for (size_t i = 0; i < sizeof OPS / sizeof OPS[0]; i++) {
    if (OPS[i].kind == kind) return &OPS[i];
  }
  return NULL;
}

static double as_f64(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* An attribute's type is that of its key; a value that this backend cannot do is refused, never ignored. */
static halyard_code set_param(params *p, const halyard_attr *attr, halyard_error *err) {
  uint32_t ty;
  switch (attr->key) {
    case HALYARD_ATTR_ALPHA: ty = HALYARD_TYPE_F64; p->alpha = as_f64(attr->bits); break;
    case HALYARD_ATTR_SCALE: ty = HALYARD_TYPE_F64; p->scale = as_f64(attr->bits); break;
    case HALYARD_ATTR_EPS: ty = HALYARD_TYPE_F64; p->eps = as_f64(attr->bits); break;
    case HALYARD_ATTR_LIMIT: ty = HALYARD_TYPE_F64; p->limit = as_f64(attr->bits); break;
    case HALYARD_ATTR_SOFTCAP: ty = HALYARD_TYPE_F64; p->softcap = as_f64(attr->bits); break;
    case HALYARD_ATTR_VOCAB_START: ty = HALYARD_TYPE_I64; p->vocab_start = (int64_t)attr->bits; break;
    case HALYARD_ATTR_OFFSET: ty = HALYARD_TYPE_I64; p->offset = (int64_t)attr->bits; break;
    case HALYARD_ATTR_ACT: ty = HALYARD_TYPE_I64; p->act = (int64_t)attr->bits; break;
    case HALYARD_ATTR_WINDOW: ty = HALYARD_TYPE_I64; p->window = (int64_t)attr->bits; break;
    case HALYARD_ATTR_PLUS_ONE: ty = HALYARD_TYPE_BOOL; p->plus_one = attr->bits != 0; break;
    case HALYARD_ATTR_STYLE: ty = HALYARD_TYPE_BOOL; p->interleaved = attr->bits != 0; break;
    case HALYARD_ATTR_ACCUMULATE: ty = HALYARD_TYPE_BOOL; p->accumulate = attr->bits != 0; break;
    case HALYARD_ATTR_CAUSAL: ty = HALYARD_TYPE_BOOL; p->causal = attr->bits != 0; break;
    case HALYARD_ATTR_ACT_QUANT:
      if (attr->bits != 0) return fail(err, HALYARD_CODE_UNSUPPORTED, "quantised activations");
      ty = HALYARD_TYPE_I64;
      break;
    default: /* LATENT */
      if (attr->bits != 0) return fail(err, HALYARD_CODE_UNSUPPORTED, "latent caches");
      ty = HALYARD_TYPE_BOOL;
  }
  if (attr->ty != ty) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "attribute %u has type %u, expected %u", attr->key, attr->ty, ty);
  return HALYARD_CODE_OK;
}

static halyard_code read_attrs(const op *known, const halyard_op_desc *desc, params *p, halyard_error *err) {
  const params defaults = { 1, 1, 1e-6, 0, 0, 0, 0, 0, -1, 0, 0, 0, 1 };
  *p = defaults;
  for (size_t i = 0; i < desc->attrs.len; i++) {
    const halyard_attr *attr = &desc->attrs.ptr[i];
    int has = 0;
    for (size_t k = 0; k < sizeof known->attrs / sizeof known->attrs[0]; k++) has |= attr->key != 0 && known->attrs[k] == attr->key;
    if (!has) return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u: attribute %u is not known", desc->kind, attr->key);
    halyard_code code = set_param(p, attr, err);
    if (code != HALYARD_CODE_OK) return code;
  }
  if (p->act < 0 || p->act > 2) return fail(err, HALYARD_CODE_UNSUPPORTED, "activation %lld; 0 to 2 are", (long long)p->act);
  return HALYARD_CODE_OK;
}

static int is_float(uint32_t dtype) { return dtype >= HALYARD_DTYPE_F32 && dtype <= HALYARD_DTYPE_BF16; }

static halyard_code check_slots(const op *known, const halyard_op_desc *desc, halyard_error *err) {
  for (size_t i = 0; i < desc->tensors.len; i++) {
    uint32_t dtype = desc->tensors.ptr[i].dtype;
    if (dtype == HALYARD_DTYPE_NONE) continue;
    if (i >= known->slots) return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u: slot %zu is not known", desc->kind, i);
    for (size_t k = 0; k < sizeof known->refused / sizeof known->refused[0]; k++) {
      if (known->refused[k] == i + 1) return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u with scaled caches", desc->kind);
    }
    int wide = dtype >= HALYARD_DTYPE_I32 && dtype <= HALYARD_DTYPE_U32; /* I32, I64, U32 */
    if (!is_float(dtype) && ((!wide && dtype != HALYARD_DTYPE_U64) || desc->kind == HALYARD_OP_COPY)) {
      return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u: slot %zu of dtype %u", desc->kind, i, dtype);
    }
  }
  return HALYARD_CODE_OK;
}

halyard_code ops_prepare(halyard_device *d, const halyard_op_desc *desc, halyard_kernel **kernel, halyard_error *err) {
  const op *known = find_op(desc->kind);
  params p;
  halyard_weight_plan plan;
  if (!known) return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u", desc->kind);
  if (desc->revision != 1) return fail(err, HALYARD_CODE_UNSUPPORTED, "op %u: revision %u, 1 is known", desc->kind, desc->revision);
  halyard_code code = read_attrs(known, desc, &p, err);
  if (code == HALYARD_CODE_OK) code = check_slots(known, desc, err);
  if (code == HALYARD_CODE_OK && desc->weights.len != known->weights) {
    code = fail(err, HALYARD_CODE_INVALID_ARGUMENT, "op %u with %zu weights", desc->kind, desc->weights.len);
  }
  for (size_t i = 0; code == HALYARD_CODE_OK && i < desc->weights.len; i++) code = weights_plan(d, &desc->weights.ptr[i], &plan, err);
  if (code != HALYARD_CODE_OK) return code;
  *kernel = malloc(sizeof **kernel);
  if (!*kernel) return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for a kernel");
  (*kernel)->device = d;
  (*kernel)->params = p;
  (*kernel)->run = known->run;
  (*kernel)->weights = known->weights;
  return HALYARD_CODE_OK;
}

halyard_code ops_launch(halyard_kernel *kernel, halyard_stream s, const halyard_launch_args *args, halyard_error *err) {
  call c;
  memset(&c, 0, sizeof c);
  c.params = &kernel->params;
  halyard_code code = stream_check(kernel->device, s, err);
  if (code == HALYARD_CODE_OK && (args->tensors.len > MAX_SLOTS || args->weights.len != kernel->weights)) {
    code = fail(err, HALYARD_CODE_INVALID_ARGUMENT, "%zu tensors and %zu weights", args->tensors.len, args->weights.len);
  }
  if (code == HALYARD_CODE_OK && kernel->weights) code = weights_get(kernel->device, args->weights.ptr[0], &c.w, err);
  if (code != HALYARD_CODE_OK) return code;
  for (size_t i = 0; i < args->tensors.len; i++) {
    c.has[i] = args->tensors.ptr[i].dtype != HALYARD_DTYPE_NONE;
    if (c.has[i]) c.t[i] = tensor_open(&args->tensors.ptr[i]);
  }
  return kernel->run(&c, err);
}

void ops_destroy(halyard_kernel *kernel) { free(kernel); }
