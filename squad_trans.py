"""SQuAD: with --dir, train a subnetwork (or the dense model); without it, find lottery tickets (Algorithm 1)."""

from utils import cli, masks, models, session, squad_data
from utils.errors import UserError
from utils.report import say
from utils.seeds import Order
from utils.squad import AnswerOptions, SquadTask


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    cli.add_squad_flags(parser)
    cli.add_ticket_flags(parser, required=False)
    cli.add_model_flags(parser)
    cli.add_output_flags(parser)
    both = f"with --dir: {cli.SAVE}; without: {cli.ROUND}"
    cli.add_training_flags(parser, batch=16, rate=3e-5, epochs=4.0, save_steps=both)
    cli.add_imp_flags(parser)
    args = parser.parse_args()
    cli.check_training_flags(args)
    if args.init is None and (args.mask_dir or args.weight_pertub):
        raise UserError(
            "--mask_dir and --weight_pertub train a ticket: give --dir pre or --dir rand with them"
        )
    if args.init is not None and (args.sparsities or args.rewind_steps or args.no_rewind):
        raise UserError(
            "--sparsities, --rewind_steps and --no_rewind are for finding tickets: leave out --dir with them"
        )
    for flag in ("n_best_size", "max_answer_length"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)} must be at least 1")
    for flag, file in (("do_train", "train_file"), ("do_eval", "predict_file")):
        if getattr(args, flag) and getattr(args, file) is None:
            raise UserError(f"--{flag} needs --{file}, the SQuAD JSON to read")
    return args


def read_task(args, tokenizer) -> SquadTask:
    """The windows of the files that the flags ask for."""
    options = AnswerOptions(
        args.n_best_size,
        args.max_answer_length,
        args.version_2_with_negative,
        args.null_score_diff_threshold,
        args.verbose_logging,
    )
    task = SquadTask(options, args.max_seq_length if args.as_released else None)

    def load(file: str, training: bool):
        return squad_data.load(
            file,
            options.v2,
            training,
            tokenizer,
            args.max_seq_length,
            args.doc_stride,
            args.max_query_length,
            args.threads,
            args.cache_dir,
            args.overwrite_cache,
        )

    if args.do_train:
        task.train = load(args.train_file, training=True)[1]
        if not len(task.train):
            raise UserError(
                f"--train_file {args.train_file}: no question has an answer to train on; give another file"
            )
    if args.do_eval:
        task.dev = load(args.predict_file, training=False)
        if not len(task.dev[1]):
            raise UserError(
                f"--predict_file {args.predict_file}: every context is empty; give another file"
            )
    return task


def main():
    args = parse_args()
    settings = cli.settings(args)
    finding = args.init is None and args.do_train
    say(
        "squad_trans.py finds tickets (IMP): no --dir is given"
        if finding
        else "squad_trans.py trains one network: --dir is given"
        if args.do_train
        else "squad_trans.py evaluates"
    )

    # data
    source = args.model_name_or_path
    config = models.load_config(args.config_name or source, args.cache_dir)
    models.check_length(config, "--max_seq_length", args.max_seq_length)
    tokenizer = models.load_tokenizer(
        args.tokenizer_name or source, args.do_lower_case, args.cache_dir
    )
    models.check_vocabulary(config, tokenizer)
    task = read_task(args, tokenizer)

    # model and mask
    model = models.load_model(
        task.model_class, source, config, args.seed, args.init or "pre", args.cache_dir
    )
    init, init_info = models.perturb(model, args.weight_pertub, args.init or "pre")
    ticket = session.load_ticket(model, args.mask_dir)
    if not args.do_train:
        session.run_evaluation(task, model, ticket, init, init_info, settings)
        return

    # train and evaluate, or rounds of training, pruning and rewinding
    order = Order(
        task.train_rows, cli.batch_size(args), args.gradient_accumulation_steps, args.seed
    )
    total = cli.total_steps(args.max_steps, args.num_train_epochs, order.steps_per_epoch)
    if finding:
        masks.attach(model)
        policy = cli.policy(args, total, rewind="encoder", short_first_round=True)
        session.run_imp(task, model, tokenizer, policy, init, settings, args.as_released)
    else:
        session.run_fine_tuning(
            task,
            model,
            tokenizer,
            ticket,
            init,
            init_info,
            total,
            total,
            args.save_steps or 0,
            settings,
        )


if __name__ == "__main__":
    cli.run(main)
