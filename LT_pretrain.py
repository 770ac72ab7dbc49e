"""Find lottery tickets on masked language modelling: iterative magnitude pruning with rewinding (Algorithm 1)."""

from utils import cli, masks, models, session
from utils.mlm import MlmTask
from utils.seeds import Order


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    cli.add_mlm_flags(parser)
    cli.add_model_flags(parser, default=None)
    cli.add_output_flags(parser)
    cli.add_training_flags(parser, batch=16, rate=5e-5, epochs=1.0, save_steps=cli.ROUND)
    cli.add_imp_flags(parser)
    args = parser.parse_args()
    cli.check_training_flags(args)
    cli.check_mlm_flags(args)
    return args


def main():
    args = parse_args()
    settings = cli.settings(args)

    # data
    config, tokenizer = cli.mlm_source(args)
    task = MlmTask(
        tokenizer, args.mlm_probability, args.per_gpu_eval_batch_size if args.as_released else None
    )
    cli.read_text(args, task, config)

    # model: theta_0 pre-trained (or drawn, without --model_name_or_path), the MLM head with it
    init = "pre" if args.model_name_or_path else "rand"
    model = models.load_model(
        task.model_class, args.model_name_or_path, config, args.seed, init, args.cache_dir
    )

    if not args.do_train:
        session.run_evaluation(task, model, session.load_ticket(model, None), init, None, settings)
        return

    # mask m = 1, then rounds of training, pruning and rewinding
    order = Order(
        task.train_rows, cli.batch_size(args), args.gradient_accumulation_steps, args.seed
    )
    total = cli.total_steps(args.max_steps, args.num_train_epochs, order.steps_per_epoch)
    policy = cli.policy(args, total, rewind="none", prune_first=True)
    masks.attach(model)
    session.run_imp(task, model, tokenizer, policy, init, settings, args.as_released)


if __name__ == "__main__":
    cli.run(main)
