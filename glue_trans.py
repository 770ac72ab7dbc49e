"""Train a subnetwork of BERT (or the dense model) on a GLUE task: how the paper scores and transfers its tickets."""

from utils import cli, models, session
from utils.seeds import Order


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    cli.add_glue_flags(parser)
    cli.add_ticket_flags(parser)
    cli.add_model_flags(parser)
    cli.add_output_flags(parser)
    cli.add_training_flags(parser, batch=32, rate=2e-5, epochs=3.0, save_steps=cli.SAVE)
    args = parser.parse_args()
    cli.check_training_flags(args)
    return args


def main():
    args = parse_args()
    settings = cli.settings(args)

    # data
    config, tokenizer, task = cli.read_glue(args)

    # model: pre-trained, drawn anew, or perturbed weights
    model = models.load_model(
        task.model_class, args.model_name_or_path, config, args.seed, args.init, args.cache_dir
    )
    init, init_info = models.perturb(model, args.weight_pertub, args.init)

    # mask
    ticket = session.load_ticket(model, args.mask_dir)

    if not args.do_train:
        session.run_evaluation(task, model, ticket, init, init_info, settings)
        return

    # train and evaluate
    order = Order(
        task.train_rows, cli.batch_size(args), args.gradient_accumulation_steps, args.seed
    )
    planned = cli.total_steps(args.max_steps, args.num_train_epochs, order.steps_per_epoch)
    total = planned + (
        args.as_released and args.max_steps > 0
    )  # the released loop stops one step late
    session.run_fine_tuning(
        task,
        model,
        tokenizer,
        ticket,
        init,
        init_info,
        total,
        planned,
        args.save_steps or 0,
        settings,
    )


if __name__ == "__main__":
    cli.run(main)
