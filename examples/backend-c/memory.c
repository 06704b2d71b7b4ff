/* Buffers, streams and events of a device whose memory is the host's and whose calls run at once: streams are names. */
#include "toy.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t handle_new(handles *h, void *object) {
  if (h->count == h->room) {
    size_t room = h->room ? 2 * h->room : 64;
    void **objects = realloc(h->objects, room * sizeof *objects);
    if (!objects) return 0;
    h->objects = objects;
    h->room = room;
  }
  h->objects[h->count++] = object;
  return h->count;
}

void *handle_get(const handles *h, uint64_t handle) {
  return handle > 0 && handle <= h->count ? h->objects[handle - 1] : NULL;
}

void *handle_drop(handles *h, uint64_t handle) {
  void *object = handle_get(h, handle);
  if (object) h->objects[handle - 1] = NULL;
  return object;
}

static halyard_code unknown(halyard_error *err, const char *what, uint64_t handle) {
  return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "no %s %llu", what, (unsigned long long)handle);
}

static halyard_code no_memory(halyard_error *err, uint64_t bytes) {
  return fail(err, HALYARD_CODE_OUT_OF_MEMORY, "no %llu bytes of host memory", (unsigned long long)bytes);
}

/* Keeps an object under a new handle, or frees it. */
static halyard_code keep(halyard_device *d, handles *h, void *object, uint64_t *handle, halyard_error *err) {
  if (object) {
    pthread_mutex_lock(&d->lock);
    *handle = handle_new(h, object);
    pthread_mutex_unlock(&d->lock);
    if (*handle) return HALYARD_CODE_OK;
    free(object);
  }
  return no_memory(err, sizeof(uint64_t));
}

static halyard_code forget(halyard_device *d, handles *h, const char *what, uint64_t handle, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  void *object = handle_drop(h, handle);
  pthread_mutex_unlock(&d->lock);
  if (!object) return unknown(err, what, handle);
  free(object);
  return HALYARD_CODE_OK;
}

halyard_code memory_alloc(halyard_device *d, const halyard_alloc_req *req, halyard_buffer *buffer, halyard_error *err) {
  uint64_t align = req->align > 256 ? req->align : 256;
  void *base = NULL;
  if (req->bytes == 0 || req->flags || (align & (align - 1)) || req->kind == HALYARD_MEM_HOST || req->kind > HALYARD_MEM_MANAGED) {
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "an allocation of %llu bytes, align %llu, kind %u, flags %u",
                (unsigned long long)req->bytes, (unsigned long long)req->align, req->kind, req->flags);
  }
  if (req->bytes > SIZE_MAX / 2 || posix_memalign(&base, align, req->bytes)) return no_memory(err, req->bytes);
  buffer->base = (uint64_t)(uintptr_t)base;
  buffer->bytes = req->bytes;
  buffer->kind = req->kind;
  halyard_buffer *kept = malloc(sizeof *kept);
  if (kept) *kept = *buffer;
  halyard_code code = keep(d, &d->buffers, kept, &buffer->id, err);
  if (code != HALYARD_CODE_OK) free(base);
  return code;
}

halyard_code memory_free(halyard_device *d, const halyard_buffer *buffer, halyard_error *err) {
  void *base = (void *)(uintptr_t)buffer->base;
  halyard_code code = forget(d, &d->buffers, "buffer", buffer->id, err);
  if (code == HALYARD_CODE_OK) free(base);
  return code;
}

halyard_code memory_resolve(halyard_device *d, const halyard_mem_ref *ref, uint64_t bytes, char **address, halyard_error *err) {
  int inside = ref->kind == HALYARD_MEM_HOST && ref->base != 0;
  if (ref->kind != HALYARD_MEM_HOST) {
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < d->buffers.count && !inside; i++) {
      const halyard_buffer *b = d->buffers.objects[i];
      inside = b && b->base == ref->base && ref->offset <= b->bytes && bytes <= b->bytes - ref->offset;
    }
    pthread_mutex_unlock(&d->lock);
  }
  if (!inside) {
    return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "%llu bytes at offset %llu are in no buffer of this device",
                (unsigned long long)bytes, (unsigned long long)ref->offset);
  }
  *address = (char *)(uintptr_t)(ref->base + ref->offset);
  return HALYARD_CODE_OK;
}

halyard_code memory_copy(halyard_device *d, halyard_stream s, const halyard_copy_req *req, halyard_error *err) {
  char *dst, *src;
  halyard_code code = stream_check(d, s, err);
  if (code != HALYARD_CODE_OK || req->rows == 0 || req->row_bytes == 0) return code;
  code = memory_resolve(d, &req->dst, (req->rows - 1) * req->dst_pitch + req->row_bytes, &dst, err);
  if (code != HALYARD_CODE_OK) return code;
  code = memory_resolve(d, &req->src, (req->rows - 1) * req->src_pitch + req->row_bytes, &src, err);
  if (code != HALYARD_CODE_OK) return code;
  for (uint64_t row = 0; row < req->rows; row++) {
    memmove(dst + row * req->dst_pitch, src + row * req->src_pitch, req->row_bytes);
  }
  return HALYARD_CODE_OK;
}

halyard_code memory_fill(halyard_device *d, halyard_stream s, const halyard_mem_ref *dst, uint32_t pattern, uint64_t bytes,
                         halyard_error *err) {
  char *start;
  halyard_code code = stream_check(d, s, err);
  if (code != HALYARD_CODE_OK) return code;
  if (bytes % 4) return fail(err, HALYARD_CODE_INVALID_ARGUMENT, "a fill of bytes that are no multiple of 4");
  code = memory_resolve(d, dst, bytes, &start, err);
  for (uint64_t i = 0; code == HALYARD_CODE_OK && i < bytes; i += 4) memcpy(start + i, &pattern, 4);
  return code;
}

halyard_code stream_check(halyard_device *d, halyard_stream s, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  int known = s == 0 || handle_get(&d->streams, s);
  pthread_mutex_unlock(&d->lock);
  return known ? HALYARD_CODE_OK : unknown(err, "stream", s);
}

halyard_code stream_new(halyard_device *d, int32_t priority, uint32_t flags, halyard_stream *s, halyard_error *err) {
  (void)priority;
  if (flags) return fail(err, HALYARD_CODE_UNSUPPORTED, "stream flags %u, none is known", flags);
  return keep(d, &d->streams, malloc(1), s, err);
}

halyard_code stream_end(halyard_device *d, halyard_stream s, halyard_error *err) { return forget(d, &d->streams, "stream", s, err); }

halyard_code stream_wait(halyard_device *d, halyard_stream s, uint64_t timeout_ns, halyard_error *err) {
  (void)timeout_ns;
  return stream_check(d, s, err);
}

halyard_code event_new(halyard_device *d, uint32_t flags, halyard_event *e, halyard_error *err) {
  if (flags > 1) return fail(err, HALYARD_CODE_UNSUPPORTED, "event flags %u, 1 (time) is known", flags);
  return keep(d, &d->events, calloc(1, sizeof(uint64_t)), e, err);
}

halyard_code event_end(halyard_device *d, halyard_event e, halyard_error *err) { return forget(d, &d->events, "event", e, err); }

halyard_code event_mark(halyard_device *d, halyard_event e, halyard_stream s, halyard_error *err) {
  struct timespec now;
  halyard_code code = stream_check(d, s, err);
  if (code != HALYARD_CODE_OK) return code;
  clock_gettime(CLOCK_MONOTONIC, &now);
  pthread_mutex_lock(&d->lock);
  uint64_t *reached = handle_get(&d->events, e);
  if (reached) *reached = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
  pthread_mutex_unlock(&d->lock);
  return reached ? HALYARD_CODE_OK : unknown(err, "event", e);
}

halyard_code event_check(halyard_device *d, halyard_event e, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  int known = handle_get(&d->events, e) != NULL;
  pthread_mutex_unlock(&d->lock);
  return known ? HALYARD_CODE_OK : unknown(err, "event", e);
}

halyard_code event_before(halyard_device *d, halyard_stream s, halyard_event e, halyard_error *err) {
  halyard_code code = stream_check(d, s, err);
  return code == HALYARD_CODE_OK ? event_check(d, e, err) : code;
}

halyard_code event_wait_host(halyard_device *d, halyard_event e, uint64_t timeout_ns, halyard_error *err) {
  (void)timeout_ns;
  return event_check(d, e, err);
}

halyard_code event_elapsed(halyard_device *d, halyard_event a, halyard_event b, uint64_t *ns, halyard_error *err) {
  pthread_mutex_lock(&d->lock);
  const uint64_t *first = handle_get(&d->events, a), *second = handle_get(&d->events, b);
  int recorded = first && second && *first && *second;
  if (recorded) *ns = *second > *first ? *second - *first : 0;
  pthread_mutex_unlock(&d->lock);
  return recorded ? HALYARD_CODE_OK : fail(err, HALYARD_CODE_INVALID_ARGUMENT, "both events must have been recorded");
}

static void free_all(handles *h) {
  for (size_t i = 0; i < h->count; i++) free(h->objects[i]);
  free(h->objects);
}

void memory_close(halyard_device *d) {
  for (size_t i = 0; i < d->buffers.count; i++) {
    const halyard_buffer *b = d->buffers.objects[i];
    if (b) free((void *)(uintptr_t)b->base);
  }
  free_all(&d->buffers);
  free_all(&d->streams);
  free_all(&d->events);
}
