"""Tamiyo in a training loop of your own: one call after every step.

    tamiyo = Plug.open("runs", params, loss_fn, batch, mode="guard", every=50, log=print)
    for batch in batches:
        state, loss = train_step(state, batch)
        state = tamiyo(state, loss)
    tamiyo.close()

Each call adds the step's measurements to a sum on the device and waits for nothing. After every
`every` calls the means are read, the state is kept if it is sound, the controller is asked and
its command is applied. If the controller cannot answer, the state stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self, TypeVar

import jax

from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host import Host, HostState, blueprint_of, layer_names, loss_of
from tamiyo_jax.training._deciding import Decider
from tamiyo_jax.training._evaluation import Evaluation, evaluate_growth, run_once
from tamiyo_jax.training._inputs import count_steps, read_steps, split_model
from tamiyo_jax.training._programs import Programs
from tamiyo_jax.training._settings import check_options
from tamiyo_jax.training._watch import Due

__all__ = ["Plug"]

HOST_ID = "host"
OWN_RISK = 0.0  # the network is there with Tamiyo or without

Batch = Any
State = TypeVar("State")


class Plug(Decider):
    """Tamiyo's place in a training loop; made by `Plug.open` or `Plug.grow`.

    It makes packets from the measurements of the steps, keeps sound states in memory, on disk too
    if it is resumable, and verifies and applies commands. Settings come from `TamiyoConfig.load`;
    the heuristic decides.

    Attributes:
      directory: of this run: its blueprints in ``blueprints.db``, the controller in ``tamiyo``.
      tamiyo: the controller, for instance to switch its mode; or the client of a server.
      undone_steps: batches that the last call rolled back; a loop that reads its data without
        `batches` goes back by as many, unless `skips_data`.
      skips_data: these batches are to be left out, because the fault came again.
      escalated: the controller cannot help; a person must look.
    """

    _programs: Programs | None = None

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        model: Any,  # noqa: ANN401 - any pytree
        forward: Callable[[Any, Any], Any],
        example: Any,  # noqa: ANN401 - as for blueprint_of
        *,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        log: Callable[[str], object],
        validate: Callable[[Any], jax.Array] | None = None,
        server: str | None = None,
        run_id: str | None = None,
        resumable: bool = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Plug Tamiyo into a loop that does not grow its network.

        Args:
          directory: holds runs; this run gets a directory of its own in it, named by the time of
            day, with a number where other runs began in the same second.
          model: the parameters that the monitored optimiser updates, or a model that is a
            pytree of them, as JAX or NumPy arrays; leaves that are not floating arrays are left
            as they are.
          forward: ``(model, example)``, the network or its loss; traced, never run.
          example: an input of `forward`; shapes and dtypes are enough.
          mode: as for `Tamiyo.open`.
          every: steps from one decision to the next; the policy takes them for an epoch.
          log: called with one line of text for each command and for each error.
          validate: the validation loss f32[] of a train state, computed at every decision; used
            by the policy and, under ``risk.detection = "absolute"``, by the rules.
          server: the URL of the Redis of a `tamiyo-jax serve`, which then decides, in the mode
            and by the policy that it was started with; None decides in this process.
          run_id: with `server`, the run: its key is in the variable ``security.secret_env``, and
            its blueprint is put into the library under this id.
          resumable: also write the kept states to disk, in ``states`` in the run's directory; a
            thread does it with Orbax, and the loop waits for no disk.
          resume: the `directory` of such a run, whose process has ended, to go on with; then call
            `restore` for the state to go on from, before the first step.

        Raises:
          ConfigurationError: `every` is less than 1, or `mode` is not a mode; or one of `server`
            and `run_id` is given without the other.
          PersistenceError: `directory` cannot be made or written.
          TamiyoError: as `host.blueprint_of` and `Tamiyo.open` do.
        """
        params, join = split_model(model)
        check_options(mode, every, server, run_id)
        return cls(
            directory,
            blueprint_of(
                params,
                lambda params, example: forward(join(params), example),
                example,
                blueprint_id=run_id or HOST_ID,
                risk=OWN_RISK,
            ),
            layers=layer_names(params),
            evaluate=lambda state: Evaluation(validate and validate(state), {}, {}),
            validates=validate is not None,
            mode=mode,
            every=every,
            log=log,
            server=server,
            run_id=run_id,
            resumable=resumable,
            resume=resume,
        )

    @classmethod
    def grow(
        cls,
        directory: str | os.PathLike[str],
        state: HostState,
        host: Host,
        candidates: Sequence[Blueprint],
        validation: Batch,
        *,
        mode: Literal["act", "shadow", "guard"],
        every: int,
        log: Callable[[str], object],
        step: Callable[[HostState], object] | None = None,
        resumable: bool = False,
        resume: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Plug Tamiyo into a loop that trains a host with seed slots by `host.train_step`.

        Args:
          directory: holds runs, as for `open`.
          state: of the host, before its first step.
          host: the host that is trained.
          candidates: blueprints that seeds may be grown into, as `host.seed_bank` gives them.
          validation: a batch for `host.loss` that evaluates the network, seeds and candidates.
          mode: as for `Tamiyo.open`.
          every: steps from one decision to the next.
          log: called with one line of text for each command and for each error.
          step: what the loop runs on a state, such as ``lambda state: train_step(state, batch)``
            with a batch of the loop. It is called for a seed that germinates, on a copy, in a
            thread; the loop goes on without the seed until it is compiled. None: it waits.
          resumable: as for `open`.
          resume: as for `open`.

        Raises:
          TamiyoError: as `open` does.
        """
        evaluate = evaluate_growth(host, validation)
        programs = None if step is None else Programs(partial(run_once, step, evaluate), wait=False)
        if programs is not None:
            programs.inside(state)
        plug = cls(
            directory,
            blueprint_of(
                state.params,
                lambda params, batch: loss_of(host, state._replace(params=params), batch),
                validation,
                blueprint_id=HOST_ID,
                risk=OWN_RISK,
            ),
            layers=layer_names(state.params),
            evaluate=evaluate,
            validates=True,
            mode=mode,
            every=every,
            log=log,
            host=host,
            candidates=candidates,
            resumable=resumable,
            resume=resume,
        )
        plug._programs = programs
        return plug

    def __call__(self, state: State, measured: Any) -> State:  # noqa: ANN401 - see total_loss
        """Take a train state after a step; return it, or what a command made of it.

        Args:
          state: a `HostState`, or any pytree that holds the state of an optimiser with
            `host.monitor` around it and `host.tamiyo_scale` in it.
          measured: of this step: the training loss, or what `host.train_step` returns. A loss
            may be a float or a floating array, whose mean is taken; a tuple that begins with
            the loss; or a dict of losses, which are added up. Of the T steps of a
            ``jax.lax.scan``, their `StepMetrics` as it stacks them: then the controller is asked
            at most once, about the state after the last.

        Raises:
          ConfigurationError: the optimiser is not monitored or has other layers, the loss is
            not a number, this is traced by ``jax.jit``, or a resumed run has not been restored.
          CommandRejectedError: the optimiser has no `tamiyo_scale`.
        """
        if self._awaits_state:
            raise ConfigurationError(
                "this run is resumed; begin with state = tamiyo.restore(state)", field="resume"
            )
        metrics, multiplier = read_steps(self._read, state, measured)
        self.undone_steps, self.skips_data = 0, False
        due = self._watch.add(metrics, multiplier)
        if self._programs is None:
            return self._after_step(state, due, count_steps(metrics))
        if due in (Due.ALARM, Due.DECISION) or self._programs.ready:
            return self._inside(self._after_step(self._whole(state), due, count_steps(metrics)))
        return state

    def _whole(self, state: State) -> State:
        """The state with the seeds whose programs are not there yet."""
        if self._programs is None or not isinstance(state, HostState):
            return state
        return self._programs.rejoin(state)

    def _inside(self, whole: State) -> State:
        """The state without the seeds whose programs are not there yet."""
        if self._programs is None or not isinstance(whole, HostState):
            return whole
        state, error = self._programs.inside(whole)
        if error is not None:
            self._log(f"step {self._watch.steps}: goes on without the seed: {error}")
        return state

    def batches(self, read: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
        """The batches of the loop, one for each call; after a rollback, again from its state on.

        The time that each takes to arrive is measured, so that a stalled loader is reported.

        Args:
          read: gives the batches from a position on, counted from 0; called at the start, and
            after a rollback unless the data is to be skipped.
        """
        return self._watch.batches(read)
