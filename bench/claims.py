"""What is said of the project, and the tests or the bench that show each claim."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """Something that is said of the project, and what shows it.

    Attributes:
        id: the record's file name.
        text: the claim, in a sentence.
        tests: files under tests/ that show it, all of them with full counts.
        bench: a command that prints one JSON object on stdout, its words after the interpreter.
        may_skip: reasons (parts of them) for which a test may be skipped.
    """

    id: str
    text: str
    tests: tuple[str, ...] = ()
    bench: tuple[str, ...] = ()
    may_skip: tuple[str, ...] = ("no CUDA device",)


CLAIMS = (
    Claim(
        "suite",
        "Every test passes with full counts.",
        tests=(".",),
    ),
    Claim(
        "install",
        "The editable checkout, the wheel and the sdist each hold the whole namespace, and each "
        "layer imports its neighbour only.",
        tests=("test_packaging.py", "test_layers.py"),
    ),
    Claim(
        "real_data",
        "All files of real exports ingest, read = accepted + replaced + duplicate + quarantined; "
        "all posts matched against all profiles violate no rule, by a check of the raw files.",
        tests=("test_real_data.py",),
    ),
    Claim(
        "exactness",
        "Top-K equals a brute force in Python integers over plans, block sizes, budgets, threads "
        "and directions; contributions sum to points; batches of 1 and 10,000 give the same "
        "bytes; golden files hold.",
        tests=(
            "test_topk.py",
            "test_topk_property.py",
            "test_rank.py",
            "test_rules.py",
            "test_order.py",
            "test_kernels_golden.py",
            "test_scoring_golden.py",
            "test_generation.py",
            "test_results.py",
            "test_matcher.py",
            "test_matcher_requests.py",
        ),
    ),
    Claim(
        "bad_input",
        "100,000 generated bad rows, maps, policies and command lines: each a typed error or a "
        "quarantined row, no traceback, nothing lost.",
        tests=("test_bad_input.py", "test_fuzz_cli.py", "test_service_wire.py"),
    ),
    Claim(
        "adversary",
        "Each known trick gains at most what is stated; first names change no order.",
        tests=("test_adversary.py", "test_adversary_matcher.py"),
    ),
    Claim(
        "crash",
        "After kill -9 nothing that was acknowledged is lost; damage, full disks and read-only "
        "folders are named, and nothing is read half.",
        tests=(
            "test_store_crash.py",
            "test_store_damage.py",
            "test_store_disk.py",
            "test_store_faults.py",
            "test_cli_store.py",
        ),
    ),
    Claim(
        "store_lasts",
        "Epochs that are kept open unchanged; compaction, migration, publish, pull, backup and "
        "restore lose nothing when they are killed, and are never seen half done.",
        tests=(
            "test_store_epochs.py",
            "test_store_rewrite.py",
            "test_store_compaction.py",
            "test_store_migration.py",
            "test_store_model.py",
            "test_store_publish.py",
            "test_store_publish_faults.py",
            "test_store_backup.py",
        ),
    ),
    Claim(
        "speed",
        "On two cores, exact filtered top-K keeps up with NumPy's bare sgemm and passes FAISS.",
        bench=("-m", "matchwright.engine.cli", "bench", "topk", "--json", "--full"),
    ),
    Claim(
        "store",
        "A million freelancers are opened in 3 s, and a change is visible within 1 s.",
        bench=("bench/bench_store.py", "--json"),
    ),
    Claim(
        "match",
        "A million freelancers are served in 4 GB, and one warm match costs at most 1.5 times "
        "what reading the corpus once costs.",
        bench=("bench/bench_match.py", "--json"),
    ),
    Claim(
        "runs",
        "However a run is done, and wherever it is killed, stopped or damaged, it ends with the "
        "digest of single answers.",
        tests=(
            "test_runs.py",
            "test_run_folders.py",
            "test_runs_crash.py",
            "test_cli_run.py",
            "test_run_real.py",
        ),
    ),
    Claim(
        "model_serving",
        "A served model that is killed, stopped, slow or wrong costs no call its deadline; it is "
        "asked again within 2 s of readiness, shared memory gives the same bits as the wire, and "
        "nothing grows over 100 restarts.",
        tests=(
            "test_breaker.py",
            "test_triton_calls.py",
            "test_triton_failures.py",
            "test_triton_memory.py",
            "test_triton_serve.py",
        ),
    ),
    Claim(
        "model_calls",
        "What a call of a model costs beside the server's own work, over the wire and through "
        "shared memory.",
        bench=("bench/bench_triton.py", "--json"),
    ),
    Claim(
        "encoder_served",
        "A served encoder agrees with ONNX Runtime in-process to 1e-5; unchanged text is never "
        "sent twice, and one generation never mixes two encoders.",
        tests=("test_encoder_triton.py", "test_served_encoder.py", "test_store_encoder.py"),
    ),
    Claim(
        "encoder_rate",
        "Bulk encoding through a served encoder reaches 90% of the rate of ONNX Runtime in this "
        "process; a second pass over an unchanged store sends nothing.",
        bench=("bench/bench_encoder.py", "--json"),
    ),
    Claim(
        "rerank_cost",
        "Reranking 200 candidates for each of 64 requests at once adds less than 2 times the "
        "model's own compute time, and rows come back at 80% of LightGBM's rate in this process.",
        bench=("bench/bench_rerank.py", "--json"),
    ),
    Claim(
        "reranked_pairs",
        "Contributions add up to the served score exactly for 100,000 reranked pairs; LightGBM and "
        "the served ranker agree to the bit in any batch size.",
        tests=("test_rerank_triton.py", "test_models_server.py", "test_trees.py"),
    ),
    Claim(
        "triton_faults",
        "Whatever happens to the model server, every request is answered before its deadline, "
        "degraded answers are marked, and the model is used again within 2 s of readiness.",
        tests=(
            "test_rerank.py",
            "test_rerank_triton.py",
            "test_service_models.py",
            "test_service_rerank.py",
            "test_service_texts.py",
            "test_together.py",
            "test_triton_failures.py",
        ),
    ),
    Claim(
        "model_switch",
        "Rankers and encoders are swapped and rolled back under load without a failed request; "
        "every answer names the version that made it, and generations never mix encoders.",
        tests=(
            "test_encoder_triton.py",
            "test_models_server.py",
            "test_service_models.py",
            "test_service_switch.py",
            "test_training_triton.py",
        ),
    ),
    Claim(
        "runs_reranked",
        "A run with a model has the answers of single requests whoever does its work, waits for "
        "its model, and never mixes reranked and other queries unless told so.",
        tests=(
            "test_run_rerank.py",
            "test_run_rerank_failures.py",
            "test_run_rerank_incremental.py",
            "test_run_rerank_verify.py",
        ),
    ),
    Claim(
        "training",
        "On simulated marketplaces with known truth and position bias, training with corrected "
        "positions recovers the true order better than training on raw clicks, and the gate "
        "refuses what is worse.",
        bench=("bench/bench_training.py", "--json"),
    ),
    Claim(
        "run_checks",
        "Every kind of damage to a run is found, a run is published whole or not at all, and two "
        "runs differ for the reasons that are told.",
        tests=("test_run_verify.py", "test_run_publish.py", "test_run_diff.py"),
    ),
    Claim(
        "incremental",
        "A run of what changed has the digest of a full run, over 50 random change sets, and its "
        "cost follows the change.",
        tests=("test_run_incremental.py",),
    ),
    Claim(
        "executors",
        "One process, several, and two and four processes of Ray give one digest, also when one of "
        "them is killed.",
        tests=("test_ray_executor.py", "test_run_processes.py"),
    ),
    Claim(
        "exposure",
        "The cap, the floor for newcomers and the groups of the exposure pass hold wherever they "
        "can, and its price is what it says.",
        tests=("test_exposure.py", "test_run_exposure.py"),
    ),
    Claim(
        "erasure",
        "Of 100 erased people nothing can be decoded from any file of store, runs and quarantine.",
        tests=("test_erase.py", "test_erase_parts.py"),
    ),
    Claim(
        "report",
        "The report opens without a network and without an error, is readable at 1280 and 390 "
        "pixels, and its numbers are those of the Parquet files.",
        tests=(
            "test_run_report.py",
            "test_run_report_runs.py",
            "test_run_report_words.py",
            "test_run_report_browser.py",
        ),
    ),
    Claim(
        "nightly",
        "The examples of the nightly job are valid for their own tools, and the script does what "
        "each exit code asks for.",
        tests=("test_nightly.py",),
    ),
    Claim(
        "runs_scale",
        "A million freelancers for 10,000 jobs on two cores: within 4 GB, under 15 s outside the "
        "kernels per million result rows, and 1.8 times as fast as on one core.",
        bench=("bench/bench_run.py", "--json"),
    ),
    Claim(
        "quality",
        "How much of the float32 top 100 integer points keep, and how the ranking does on earlier "
        "views (which stand in for hires) and on titles, beside TF-IDF and popularity.",
        bench=("bench/quality.py", "--json"),
    ),
    Claim(
        "quality_models",
        "How a served encoder in the first phase and a trained ranker in the second do on views "
        "(which stand in for hires) of candidates that nothing learnt from, beside the embedded "
        "encoder, TF-IDF and popularity, with paired intervals.",
        bench=("bench/quality_models.py", "--json"),
    ),
    Claim(
        "demo",
        "The demo serves an encoder and a ranker where Triton can be started, goes on when that "
        "stops, gives the same bytes when it is back, and says why where it cannot be started.",
        tests=("test_demo.py",),
    ),
)
"""What ``make prove`` shows. The record ``gpu_check`` is written by ``make gpu-check``."""
