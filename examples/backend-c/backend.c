/* A complete small backend in C, in plain loops on the host's processor. Built (by `make`, or this line) and proved by
 *   cc @flags -I ../../core/abi/include -o libhalyard_backend_ctoy.so *.c -lm -lpthread
 *   halyard verify ctoy --backend-path libhalyard_backend_ctoy.so
 * Begin your own from a copy of this folder: docs/adding-a-backend.md is the way. */
#include "toy.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

halyard_code fail(halyard_error *err, halyard_code code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int length = vsnprintf(err->msg, sizeof err->msg, format, args);
  va_end(args);
  err->code = code;
  err->msg_len = length < 0 ? 0 : (uint32_t)length < sizeof err->msg ? (uint32_t)length : (uint32_t)sizeof err->msg - 1;
  return code;
}

/* Writes as much of a text as there is room for; returns how long it is. */
static size_t put(const char *text, size_t length, char *buf, size_t cap) {
  memcpy(buf, text, length < cap ? length : cap);
  return length;
}

static size_t info(uint32_t key, char *buf, size_t cap) {
  const char *text = "";
  switch (key) {
    case HALYARD_INFO_ID: text = "ctoy"; break;
    case HALYARD_INFO_NAME: text = "C toy: plain loops on the host's processor"; break;
    case HALYARD_INFO_VERSION: text = "0.1.0"; break;
    case HALYARD_INFO_VENDOR: text = "Halyard's examples"; break;
    case HALYARD_INFO_PROFILES: text = "dense,sample,quant:q4_1,quant:q8_0"; break;
    case HALYARD_INFO_OPSET: text = "1"; break;
  }
  return put(text, strlen(text), buf, cap);
}

static int32_t probe(void) { return 1; }

static halyard_code device_count(uint32_t *count, halyard_error *err) {
  (void)err;
  *count = 1;
  return HALYARD_CODE_OK;
}

static halyard_code device_open(uint32_t ordinal, halyard_key_values options, halyard_device **device, halyard_error *err) {
  if (ordinal > 0) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "there is no device %u: 1 present", ordinal);
  if (options.len > 0) {
    halyard_str key = options.ptr[0].key;
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "unknown option %.*s; this backend knows none", (int)key.len, key.ptr);
  }
  halyard_device *d = calloc(1, sizeof *d);
  if (!d) return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no memory for a device");
  if (pthread_mutex_init(&d->lock, NULL)) {
    free(d);
    return fail(err, HALYARD_CODE_INTERNAL, "pthread_mutex_init failed");
  }
  *device = d;
  return HALYARD_CODE_OK;
}

static void device_close(halyard_device *d) {
  weights_close(d);
  memory_close(d);
  pthread_mutex_destroy(&d->lock);
  free(d);
}

static int32_t device_property(halyard_device *d, uint32_t key, uint64_t *value) {
  (void)d;
  switch (key) {
    case HALYARD_PROP_INLINE: *value = 1; return 1;
    case HALYARD_PROP_ALIGN: *value = 256; return 1;
    case HALYARD_PROP_COMPUTE_UNITS: *value = 1; return 1;
    case HALYARD_PROP_PREFERRED_KV_BLOCK: *value = 16; return 1;
    case HALYARD_PROP_DTYPE_MASK:
      *value = 1u << HALYARD_DTYPE_F32 | 1u << HALYARD_DTYPE_F16 | 1u << HALYARD_DTYPE_BF16;
      return 1;
    case HALYARD_PROP_SCHEME_MASK:
      *value = 1u << HALYARD_SCHEME_DENSE | 1u << HALYARD_SCHEME_GGUF_Q4_1 | 1u << HALYARD_SCHEME_GGUF_Q8_0;
      return 1;
    default: return 0;
  }
}

static size_t device_info(halyard_device *d, uint32_t key, char *buf, size_t cap) {
  const char *text = key == HALYARD_INFO_NAME ? "C toy device" : "";
  (void)d;
  return put(text, strlen(text), buf, cap);
}

/* What device_prepare can do is what is supported: one answer for both. */
static halyard_code try_op(halyard_device *d, const halyard_op_desc *op, halyard_error *err) {
  halyard_kernel *kernel = NULL;
  halyard_code code = ops_prepare(d, op, &kernel, err);
  if (code == HALYARD_CODE_OK) ops_destroy(kernel);
  return code;
}

static uint32_t device_supports(halyard_device *d, const halyard_op_desc *op) {
  halyard_error err;
  return try_op(d, op, &err) == HALYARD_CODE_OK ? HALYARD_SUPPORT_SLOW : HALYARD_SUPPORT_NO;
}

static size_t device_explain(halyard_device *d, const halyard_op_desc *op, char *buf, size_t cap) {
  static const char slow[] = "plain loops, one thread";
  halyard_error err;
  if (try_op(d, op, &err) == HALYARD_CODE_OK) return put(slow, sizeof slow - 1, buf, cap);
  return put(err.msg, err.msg_len, buf, cap);
}

static uint64_t kernel_flags(halyard_kernel *kernel) {
  (void)kernel;
  return HALYARD_KERNEL_DETERMINISTIC | HALYARD_KERNEL_BATCH_INVARIANT;
}

static uint64_t kernel_workspace_bytes(halyard_kernel *kernel, halyard_tensor_specs shapes) {
  (void)kernel;
  (void)shapes;
  return 0;
}

/* Row-major blocks, which is what tensor_open takes an opaque view for. */
static halyard_code kv_layout(halyard_device *d, const halyard_kv_desc *desc, halyard_kv_layout *layout, halyard_error *err) {
  uint64_t bytes = desc->dtype == HALYARD_DTYPE_F32 ? 4 : 2;
  (void)d;
  if (desc->kind != HALYARD_KV_STANDARD || desc->dtype < HALYARD_DTYPE_F32 || desc->dtype > HALYARD_DTYPE_BF16) {
    return fail(err, HALYARD_CODE_UNSUPPORTED, "a cache of kind %u and dtype %u", desc->kind, desc->dtype);
  }
  bytes *= (uint64_t)desc->block_size * desc->heads;
  layout->block_bytes[0] = bytes * desc->dim_k;
  layout->block_bytes[1] = bytes * desc->dim_v;
  layout->align = 64;
  return HALYARD_CODE_OK;
}

static const halyard_backend_api API = {
  .struct_size = sizeof(halyard_backend_api),
  .abi_major = HALYARD_ABI_MAJOR,
  .abi_minor = HALYARD_ABI_MINOR,
  .info = info,
  .probe = probe,
  .device_count = device_count,
  .device_open = device_open,
  .device_close = device_close,
  .device_property = device_property,
  .device_info = device_info,
  .device_alloc = memory_alloc,
  .device_free = memory_free,
  .device_copy = memory_copy,
  .device_fill = memory_fill,
  .stream_create = stream_new,
  .stream_destroy = stream_end,
  .stream_sync = stream_wait,
  .stream_query = stream_check,
  .event_create = event_new,
  .event_destroy = event_end,
  .event_record = event_mark,
  .event_wait = event_before,
  .event_sync = event_wait_host,
  .event_query = event_check,
  .event_elapsed_ns = event_elapsed,
  .device_supports = device_supports,
  .device_explain = device_explain,
  .device_prepare = ops_prepare,
  .kernel_flags = kernel_flags,
  .kernel_workspace_bytes = kernel_workspace_bytes,
  .kernel_launch = ops_launch,
  .kernel_destroy = ops_destroy,
  .weight_plan = weights_plan,
  .weight_create = weights_create,
  .weight_fill = weights_fill,
  .weight_seal = weights_seal,
  .weight_destroy = weights_destroy,
  .kv_layout = kv_layout,
};

const halyard_backend_api *halyard_backend_v1(const halyard_host_api *host, halyard_error *err) {
  if (host->abi_major != HALYARD_ABI_MAJOR) {
    fail(err, HALYARD_CODE_ABI, "the host speaks Halyard ABI %u, this backend %u", host->abi_major, HALYARD_ABI_MAJOR);
    return NULL;
  }
  return &API;
}
