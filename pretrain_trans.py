"""Train a subnetwork of BERT (or the dense model) on masked language modelling; --dir rand pre-trains from scratch."""

from utils import cli, models, session
from utils.errors import UserError
from utils.mlm import MlmTask
from utils.seeds import Order


def parse_args():
    """The command line."""
    parser = cli.OneLineParser(description=__doc__)
    cli.add_mlm_flags(parser)
    cli.add_ticket_flags(parser)
    cli.add_model_flags(parser, default=None)
    cli.add_output_flags(parser)
    cli.add_training_flags(parser, batch=16, rate=5e-5, epochs=1.0, save_steps=cli.SAVE)
    args = parser.parse_args()
    cli.check_training_flags(args)
    cli.check_mlm_flags(args)
    if args.init == "pre" and args.model_name_or_path is None:
        raise UserError(
            "--dir pre needs --model_name_or_path, the model to start from; or give --dir rand"
        )
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

    # model and mask
    model = models.load_model(
        task.model_class, args.model_name_or_path, config, args.seed, args.init, args.cache_dir
    )
    init, init_info = models.perturb(model, args.weight_pertub, args.init)
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
