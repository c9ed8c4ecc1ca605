#pragma once

namespace lathe::train {

/// SIGINT, SIGTERM and SIGHUP ask for a stop at the next safe place; a second one ends the process at once, which harms
/// nothing on disk. SIGUSR1 asks for a checkpoint. Also unblocks the first two: they may have been blocked while
/// LibTorch was loading.
void install_stop_handlers();
/// SIGINT, SIGTERM and SIGHUP call `handler`, but for those that the process was started to ignore (nohup).
void on_stop_signals(void (*handler)(int));
/// Only unblocks them: they end the process as usual.
void unblock_stop_signals();
bool stop_requested();
/// Whether a checkpoint was asked for since the last call.
bool take_checkpoint_request();

}  // namespace lathe::train
