#!/usr/bin/env bash
# Creates the topics of one recommender where they are missing. The first four must have equal partition counts: a
# user's events, requests, responses and history meet by partition number.
set -euo pipefail

broker=$1
partitions=${PARTITIONS:-4}
replicas=${REPLICAS:-1}
kafka_topics=${KAFKA_TOPICS:-/opt/kafka/bin/kafka-topics.sh}

create() {
  local topic=$1 count=$2
  shift 2
  if ((replicas >= 3)); then
    set -- "$@" min.insync.replicas=2  # what is acknowledged is on two brokers, and one may be away
  fi
  "$kafka_topics" --bootstrap-server "$broker" --create --if-not-exists \
    --topic "$topic" --partitions "$count" --replication-factor "$replicas" "${@/#/--config=}"
}

day_ms=86400000
hour_ms=3600000

create user-events "$partitions" retention.ms=$((7 * day_ms))
create rec-requests "$partitions" retention.ms=$hour_ms
create rec-responses "$partitions" retention.ms=$hour_ms
# The history itself: compacted, never expired. Segments close hourly, so that deltas that were sealed go away; a
# tombstone outlives the longest restore.
create xgr-history-changelog "$partitions" cleanup.policy=compact segment.ms=$hour_ms min.cleanable.dirty.ratio=0.1 \
  delete.retention.ms=$day_ms
# What changes in the catalog. One partition: a catalog's version is a place in it. Tombstones stay for ten years, since
# an item of the catalog's file comes back without its own; and a week can be gone back, since none of it is compacted.
create catalog-updates 1 cleanup.policy=compact min.cleanable.dirty.ratio=0.1 \
  delete.retention.ms=$((3650 * day_ms)) min.compaction.lag.ms=$((7 * day_ms))
create rec-dead-letters 1 retention.ms=$((14 * day_ms))
