/* What the files of this backend share. */
#ifndef TOY_H
#define TOY_H

#include <pthread.h>

#include "tensor.h"

/* Fills *err (printf) and returns the code. */
halyard_code fail(halyard_error *err, halyard_code code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/* Objects by handle: 1, 2, 3 ...; a handle is never given twice. */
typedef struct handles {
  void **objects;
  size_t count, room;
} handles;

/* A new handle; 0 if there is no memory. */
uint64_t handle_new(handles *h, void *object);
/* Its object; NULL if there is none. */
void *handle_get(const handles *h, uint64_t handle);
/* Forgets it and returns its object. */
void *handle_drop(handles *h, uint64_t handle);

/* A weight: f32 rows in memory of the host's. */
typedef struct weight {
  halyard_weight_desc desc;
  float *rows;     /* [n, k] */
  uint8_t *filled; /* [n]: has come. */
  uint64_t missing;
  int sealed;
} weight;

struct halyard_device {
  pthread_mutex_t lock; /* Over the handles; any thread may call. */
  handles buffers;      /* halyard_buffer */
  handles streams;
  handles events;       /* uint64_t: when it was recorded, in ns; 0 if it was not. */
  handles weights;      /* weight */
};

/* memory.c: buffers, streams, events. */
halyard_code memory_resolve(halyard_device *d, const halyard_mem_ref *ref, uint64_t bytes, char **address, halyard_error *err);
halyard_code memory_alloc(halyard_device *d, const halyard_alloc_req *req, halyard_buffer *buffer, halyard_error *err);
halyard_code memory_free(halyard_device *d, const halyard_buffer *buffer, halyard_error *err);
halyard_code memory_copy(halyard_device *d, halyard_stream s, const halyard_copy_req *req, halyard_error *err);
halyard_code memory_fill(halyard_device *d, halyard_stream s, const halyard_mem_ref *dst, uint32_t pattern, uint64_t bytes,
                         halyard_error *err);
void memory_close(halyard_device *d);
halyard_code stream_check(halyard_device *d, halyard_stream s, halyard_error *err);
halyard_code stream_new(halyard_device *d, int32_t priority, uint32_t flags, halyard_stream *s, halyard_error *err);
halyard_code stream_end(halyard_device *d, halyard_stream s, halyard_error *err);
halyard_code stream_wait(halyard_device *d, halyard_stream s, uint64_t timeout_ns, halyard_error *err);
halyard_code event_new(halyard_device *d, uint32_t flags, halyard_event *e, halyard_error *err);
halyard_code event_end(halyard_device *d, halyard_event e, halyard_error *err);
halyard_code event_mark(halyard_device *d, halyard_event e, halyard_stream s, halyard_error *err);
halyard_code event_before(halyard_device *d, halyard_stream s, halyard_event e, halyard_error *err);
halyard_code event_check(halyard_device *d, halyard_event e, halyard_error *err);
halyard_code event_wait_host(halyard_device *d, halyard_event e, uint64_t timeout_ns, halyard_error *err);
halyard_code event_elapsed(halyard_device *d, halyard_event a, halyard_event b, uint64_t *ns, halyard_error *err);

/* weights.c */
halyard_code weights_plan(halyard_device *d, const halyard_weight_desc *desc, halyard_weight_plan *plan, halyard_error *err);
halyard_code weights_create(halyard_device *d, const halyard_weight_desc *desc, const halyard_mem_ref *dst, halyard_weight *w,
                            halyard_error *err);
halyard_code weights_fill(halyard_device *d, halyard_stream s, halyard_weight w, const halyard_weight_fill *fill, halyard_error *err);
halyard_code weights_seal(halyard_device *d, halyard_stream s, halyard_weight w, halyard_error *err);
halyard_code weights_destroy(halyard_device *d, halyard_weight w, halyard_error *err);
halyard_code weights_get(halyard_device *d, halyard_weight handle, weight **w, halyard_error *err);
void weights_close(halyard_device *d);

/* ops.c: attributes of all ops, each with its default unless the op has it. */
typedef struct params {
  double alpha, scale, eps, limit, softcap;
  int64_t vocab_start, offset, act, window;
  int plus_one, interleaved, accumulate, causal;
} params;

#define MAX_SLOTS 11

/* A launch as an op sees it. */
typedef struct call {
  const params *params;
  tensor t[MAX_SLOTS];
  int has[MAX_SLOTS]; /* The slot is not absent. */
  weight *w;          /* NULL for ops without one. */
} call;

typedef halyard_code op_run(const call *c, halyard_error *err);

halyard_code ops_prepare(halyard_device *d, const halyard_op_desc *op, halyard_kernel **kernel, halyard_error *err);
halyard_code ops_launch(halyard_kernel *kernel, halyard_stream s, const halyard_launch_args *args, halyard_error *err);
void ops_destroy(halyard_kernel *kernel);

/* rows.c, linear.c, attention.c, logits.c */
op_run run_copy, run_add, run_mul, run_gather_rows, run_rms_norm, run_rope, run_act_mul;
op_run run_embedding, run_linear;
op_run run_kv_write, run_kv_copy_blocks, run_paged_attention;
op_run run_argmax, run_topk, run_logprobs, run_logits_process, run_sample;

#endif
