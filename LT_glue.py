"""Find lottery tickets on a GLUE task: iterative magnitude pruning with rewinding (Algorithm 1 of the paper)."""

from utils import cli, masks, models, session
from utils.seeds import Order


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    cli.add_glue_flags(parser)
    cli.add_model_flags(parser)
    cli.add_output_flags(parser)
    cli.add_training_flags(parser, batch=32, rate=2e-5, epochs=30.0, save_steps=cli.ROUND)
    cli.add_imp_flags(parser)
    args = parser.parse_args()
    cli.check_training_flags(args)
    return args


def main():
    args = parse_args()
    settings = cli.settings(args)

    # data
    config, tokenizer, task = cli.read_glue(args)

    # model: theta_0 pre-trained, gamma_0 drawn by the seed
    model = models.load_model(
        task.model_class, args.model_name_or_path, config, args.seed, cache_dir=args.cache_dir
    )

    if not args.do_train:
        session.run_evaluation(task, model, session.load_ticket(model, None), "pre", None, settings)
        return

    # mask m = 1, then rounds of training, pruning and rewinding
    order = Order(
        task.train_rows, cli.batch_size(args), args.gradient_accumulation_steps, args.seed
    )
    total = cli.total_steps(args.max_steps, args.num_train_epochs, order.steps_per_epoch)
    policy = cli.policy(args, total, rewind="encoder")
    masks.attach(model)
    session.run_imp(task, model, tokenizer, policy, "pre", settings, args.as_released)


if __name__ == "__main__":
    cli.run(main)
