#!/bin/sh
# A small model of your own text: sh examples/own_text.sh FOLDER
# The thresholds of the Gopher rules are for web pages; notes and code want other ones, set by name.
set -eu
folder=${1:?give a folder with .txt, .md, .html, .jsonl or code files}

llmctl collect "$folder" --name mine \
  | llmctl clean quality.min_words=5 quality.min_stop_words=0 quality.min_alphabetic_words=0.5 \
      repetition.min_top_ngram_count=2 \
  | llmctl dedup \
  | llmctl tokenize --vocab-size 2048 \
  | llmctl pack --seq-len 256 \
  | llmctl pretrain --model tiny --steps 300 \
  | llmctl eval -q

llmctl show mine.eval
llmctl lineage mine.eval
echo "Serve it: llmctl serve mine.pretrain"
