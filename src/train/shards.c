#include "train/shards.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 18 }; /* numbers that pass at a time */

kf_shard kf_shard_of(int64_t numbers, int rank, int count) {
  int64_t each = numbers / count, more = numbers % count; /* the first `more` parts have one more */
  int64_t from = rank * each + (rank < more ? rank : more);
  return (kf_shard){from, from + each + (rank < more)};
}

static kf_shard part(const kf_shards *s, int rank) {
  int count = kf_peers_count(s->peers);
  return kf_shard_of(kf_parameters_trained(s->parameters), (rank + 2 * count) % count, count);
}

static int64_t largest(const kf_parameters *p) {
  int64_t most = 0;
  for (int i = 0; i < p->count; i++) {
    int64_t n = p->item[i].rows * p->item[i].columns;
    if (p->item[i].trained && n > most) most = n;
  }
  return most;
}

kf_status kf_shards_create(kf_peers *peers, kf_parameters *p, kf_shards *out, kf_error *e) {
  *out = (kf_shards){.peers = peers, .parameters = p};
  if (!peers) return KF_OK;
  KF_NEW(out->send, CHUNK, e);
  KF_NEW(out->receive, CHUNK, e);
  if (kf_peers_rank(peers) == 0) KF_NEW(out->whole, largest(p), e);
  p->own = part(out, kf_peers_rank(peers));
  return KF_OK;
}

void kf_shards_free(kf_shards *s) {
  free(s->send);
  free(s->receive);
  free(s->whole);
  *s = (kf_shards){0};
}

/* ---------------------------------------------------------------------------------------------- the ring */

static int64_t length(kf_shard s) {
  return s.to - s.from;
}

static kf_shard chunk_of(kf_shard s, int64_t done) {
  kf_shard c = {s.from + done < s.to ? s.from + done : s.to, s.from + done + CHUNK < s.to ? s.from + done + CHUNK : s.to};
  return c;
}

static void pack(const kf_parameters *p, const float *array, kf_shard s, float *to) {
  for (int i = 0; i < p->count; i++) {
    kf_stretch piece = kf_parameters_piece(&p->item[i], s);
    memcpy(to, array + piece.at, (size_t)piece.count * sizeof *to);
    to += piece.count;
  }
}

static void unpack(const kf_parameters *p, float *array, kf_shard s, const float *from, bool add) {
  for (int i = 0; i < p->count; i++) {
    kf_stretch piece = kf_parameters_piece(&p->item[i], s);
    float *to = array + piece.at;
    for (int64_t k = 0; k < piece.count; k++) to[k] = add ? to[k] + from[k] : from[k];
    from += piece.count;
  }
}

/* count - 1 times: a part goes to the next rank, the part in front of it comes from the rank before. Part 0 is a longest one, and
 * every rank passes as many chunks as it has. */
static void ring(const kf_shards *s, float *array, int first, bool add) {
  for (int turn = 0; turn < kf_peers_count(s->peers) - 1; turn++) {
    for (int64_t done = 0; done < length(part(s, 0)); done += CHUNK) {
      kf_shard out = chunk_of(part(s, first - turn), done), in = chunk_of(part(s, first - turn - 1), done);
      pack(s->parameters, array, out, s->send);
      kf_peers_shift(s->peers, s->send, length(out), s->receive, length(in));
      unpack(s->parameters, array, in, s->receive, add);
    }
  }
}

void kf_shards_reduce(const kf_shards *s) {
  ring(s, s->parameters->gradient, kf_peers_rank(s->peers) - 1, true);
}

void kf_shards_gather(const kf_shards *s) {
  ring(s, s->parameters->value, kf_peers_rank(s->peers), false);
}

const float *kf_shards_collect(const kf_shards *s, const float *array, const kf_parameter *item) {
  if (!s->peers) return array + item->at;
  int rank = kf_peers_rank(s->peers);
  kf_stretch own = kf_parameters_piece(item, s->parameters->own);
  if (rank != 0) {
    kf_peers_send(s->peers, array + own.at, own.count, 0);
    return NULL;
  }
  memcpy(s->whole + (own.at - item->at), array + own.at, (size_t)own.count * sizeof *array);
  for (int other = 1; other < kf_peers_count(s->peers); other++) {
    kf_stretch theirs = kf_parameters_piece(item, part(s, other));
    kf_peers_receive(s->peers, s->whole + (theirs.at - item->at), theirs.count, other);
  }
  return s->whole;
}
