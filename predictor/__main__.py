"""`python -m predictor` is `biomass predict`, where the project was unpacked and not installed."""

from featurestore.disk.messages import secure_standard_streams
from featurestore.disk.threads import wait_asleep
from predictor.command import predict


def main() -> None:
    secure_standard_streams()
    wait_asleep()
    predict.main(prog_name="python -m predictor")


if __name__ == "__main__":
    main()
